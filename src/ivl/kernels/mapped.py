"""Giving memory back: that of mapped files whose contents were copied, and of freed temporaries."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

import numpy as np


def release_pages(view: np.ndarray) -> bool:
    """Tells the system that what `view` shows of a mapped file is not needed in memory for now.

    Weights that were repacked would otherwise be resident twice. What the view shows stays the
    same: pages are read from the file again when they are looked at. Nothing happens, and False is
    returned, for memory that is not a file mapped for reading, and where the system cannot.
    """
    root = view
    while isinstance(root, np.ndarray):
        root = root.base
    mapping = root.obj if isinstance(root, memoryview) else root
    option = getattr(mmap, "MADV_DONTNEED", None)
    if option is None or not isinstance(mapping, mmap.mmap) or not view.size:
        return False
    whole = np.frombuffer(mapping, np.uint8)
    if whole.flags.writeable or not view.flags.c_contiguous:
        return False
    start = view.ctypes.data - whole.ctypes.data
    # Whole pages only: its neighbours may still be needed.
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapping.madvise(option, first, last - first)
    return True


def release_freed() -> None:
    """Returns to the system what this process has freed.

    The C library keeps freed blocks of a few megabytes for later; after a model was rearranged that
    is a quarter of a gigabyte. Does nothing where there is no `malloc_trim` (glibc has it).
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
