"""The C++ extension `_cpu`: whether it is there, what it runs on, and how fast that can be.

`IVL_ISA` chooses an instruction set by name, of those that `usable_isas` of the extension gives
(`CMakeLists.txt` has the list), or `reference`: no extension at all.

torch computes on OpenMP's threads, which keep spinning for some milliseconds after a product, to be
there for the next. A second pool would find the cores taken. Where torch uses GNU's OpenMP (Linux)
our kernels run on torch's threads; elsewhere on their own (csrc/threads.hpp).
`bench/threads.py` measures both.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from ivl.errors import ConfigError
from ivl.host import choose_threads
from ivl.quant.block_format import BlockFormat, Bytes, Floats
from ivl.toolchain import advice

try:
    from ivl.kernels import _cpu as _extension
except ImportError:  # no compiler when ivl was installed, or a file of another Python
    _extension = None

INTERFACE = 7
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


def use_threads(threads: int | None = None) -> int:
    """Sets how many threads torch and our kernels use; None: what suits this machine.

    Returns the number. Raises ConfigError for less than one.
    """
    count = choose_threads(threads)
    torch.set_num_threads(count)
    if (module := loaded()) is not None:
        module.set_num_threads(count)
    return count


def _after_fork() -> None:
    """GNU's OpenMP waits in a forked process for threads that only its parent has. With one thread
    torch does not ask for them; our kernels have a pool of their own there (csrc/threads.hpp)."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def join_pool_of_torch(module: ModuleType) -> bool:
    """Lets the extension's kernels run on torch's threads; False when torch has none to share."""
    folder = Path(torch.__file__).parent
    files = [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]
    # A torch of the system's package manager uses the system's library.
    return any(module.use_openmp(str(file)) for file in [*files, "libgomp.so.1"])


READ_BYTES = 1 << 28
"""More than a cache would hold for one of a few cores."""
ROUNDS = 6
PRODUCT_ROUNDS = 100_000


def read_bandwidth(rounds: int = ROUNDS) -> float:
    """Bytes a second that all threads together read from the processor's memory: the best of some
    passes over memory that was written before."""
    module = extension()
    if module is not None:
        return max(module.read_bandwidth(READ_BYTES) for _ in range(rounds))
    numbers = torch.ones(READ_BYTES // 4)

    return numbers.nbytes / fastest_s(lambda: torch.dot(numbers, numbers), rounds)


def fastest_s(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some runs: what others do on the machine only adds to them."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def byte_products(rounds: int = ROUNDS) -> float | None:
    """Operations a second in products of bytes whose operands are in registers, two for a product
    that is added up; None without the extension."""
    module = extension()
    if module is None:
        return None
    return max(module.byte_products(PRODUCT_ROUNDS) for _ in range(rounds))


READ = frozenset("F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split())
WRITTEN = frozenset("Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K".split())


class ExtensionCodec:
    """The `ivl.quant.block_format.Codec` of whatever instruction set the extension runs.

    Encoding follows the plan of `ivl.quant.search` step by step, with one block in each lane of a
    vector. What it gives for a block depends on the instruction set, in that sums are rounded
    otherwise, and on nothing else: not on the other blocks nor on the number of threads.
    """

    def decode(self, format_: BlockFormat, blocks: Bytes) -> Floats | None:
        module = extension()
        if module is None or format_.name not in READ:
            return None
        weights = np.empty((len(blocks), format_.block_size), np.float32)
        module.dequantize(format_.type_id, blocks, weights)
        return weights

    def encode(
        self, format_: BlockFormat, weights: Floats, importance: Floats | None
    ) -> Bytes | None:
        module = extension()
        if module is None or format_.name not in WRITTEN:
            return None
        blocks = np.empty((len(weights), format_.block_bytes), np.uint8)
        # A view of a file's bytes need not be where float32 numbers are read fastest.
        weights = np.require(weights, requirements=["C", "A"])
        flags = module.quantize(format_.type_id, weights, importance, format_.limit, blocks)
        return None if flags else blocks
