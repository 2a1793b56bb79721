"""How the C library keeps memory that was freed, in a process that runs for weeks (Linux, glibc).

Pictures are decoded in many threads. glibc gives each thread a pool of its own, up to eight for
every core, and raises the size from which it returns memory at once each time that something large
is freed (mallopt(3), M_MMAP_THRESHOLD). Memory of a server then grows long after its caches are
full, with pools that hold nothing.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""Numbers of malloc.h."""

NUM_POOLS = 2
RETURN_BYTES = 32 * 1024**2
"""What is larger is given back as soon as it is freed; below, steps of the engine use it again."""


def bound_free_memory() -> bool:
    """Two pools for all threads, and a fixed size to give back; to be called before threads start.
    False where the C library is another, which keeps its own ways."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = (
        (M_ARENA_MAX, NUM_POOLS),
        (M_MMAP_THRESHOLD, RETURN_BYTES),
        (M_TRIM_THRESHOLD, 2 * RETURN_BYTES),
    )
    taken = [mallopt(name, value) == 1 for name, value in wanted]  # each, whatever the others say
    return all(taken)
