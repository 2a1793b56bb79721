"""The C++ extension `_cpu`: whether it is there, and which instruction set it runs.

`IVL_ISA` chooses an instruction set by name, of those that `usable_isas` of the extension gives
(`CMakeLists.txt` has the list), or `reference`: no extension at all.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType

import torch

from ivl.errors import ConfigError
from ivl.kernels.threads import join_pool_of_torch
from ivl.toolchain import advice

try:
    from ivl.kernels import _cpu as _extension
except ImportError:  # no compiler when ivl was installed, or a file of another Python
    _extension = None

INTERFACE = 5
"""Of the extension that these sources go with; see `csrc/python.cpp`."""
ISA_VARIABLE = "IVL_ISA"
REFERENCE = "reference"


def is_built() -> bool:
    """Whether ivl was installed with the extension."""
    return _extension is not None


@functools.cache
def loaded() -> ModuleType | None:
    """The extension, whatever `IVL_ISA` says, with as many threads as torch has; None: absent."""
    if _extension is not None:
        if getattr(_extension, "interface", 1) != INTERFACE:
            raise ConfigError(
                "The C++ extension was built from other sources than these.",
                "Install ivl again: pip install . (or --editable .) in its directory.",
            )
        join_pool_of_torch(_extension)
        _extension.set_num_threads(torch.get_num_threads())
    return _extension


def extension() -> ModuleType | None:
    """The extension with the instruction set of `IVL_ISA`; None when it is absent or not wanted.

    Raises ConfigError for an instruction set that this build or this processor does not have.
    """
    wanted = os.environ.get(ISA_VARIABLE, "").lower()
    if wanted == REFERENCE:
        return None
    if _extension is None:
        if wanted:
            raise ConfigError(
                f"{ISA_VARIABLE} is {wanted!r}, but {advice()}", "Or set it to reference."
            )
        return None
    module = loaded()
    assert module is not None
    if not module.use_isa(wanted or module.usable_isas()[-1]):
        usable = ", ".join([*module.usable_isas(), REFERENCE])
        raise ConfigError(
            f"{ISA_VARIABLE} is {wanted!r}, which cannot run here.", f"This machine has: {usable}."
        )
    return module


def isa() -> str:
    """The name of the instruction set whose kernels run, such as `avx2`, or `reference`."""
    module = extension()
    return REFERENCE if module is None else module.isa()
