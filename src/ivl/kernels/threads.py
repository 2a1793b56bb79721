"""The threads that torch and our kernels run on: one pool for both wherever that can be had.

torch computes on OpenMP's threads, which keep spinning for some milliseconds after a product, to be
there for the next. A second pool would find the cores taken. Where torch uses GNU's OpenMP (Linux)
our kernels run on torch's threads; elsewhere on their own (csrc/threads.hpp).
`bench/threads.py` measures both.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import torch

from ivl.host import choose_threads


def use_threads(threads: int | None = None) -> int:
    """Sets how many threads torch and our kernels use; None: what suits this machine.

    Returns the number. Raises ConfigError for less than one.
    """
    from ivl.kernels import cpu

    count = choose_threads(threads)
    torch.set_num_threads(count)
    if (module := cpu.loaded()) is not None:
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
