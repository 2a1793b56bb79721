"""Mapped files: giving their memory back, and bringing them to a GPU at the speed of the disk."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


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


PIECE_BYTES = 8 << 20
"""What a thread reads at once."""
NUM_THREADS = 8

Bring = Callable[[np.ndarray, Tensor], None]
"""Copies bytes of main memory to as many on the device, and returns when they are there."""


class Uploader:
    """Brings arrays to one device. `make_lane` is called once in each thread."""

    def __init__(self, make_lane: Callable[[], Bring], num_threads: int = NUM_THREADS) -> None:
        self._make_lane = make_lane
        self._lanes = threading.local()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="ivl-upload")

    def upload(self, view: np.ndarray, out: Tensor) -> None:
        """view, out: uint8, contiguous, of one size. Returns when all has arrived."""
        source, target = view.reshape(-1), out.view(-1)
        pieces = [
            self._pool.submit(self._bring, source[at : at + PIECE_BYTES], target[at:][:PIECE_BYTES])
            for at in range(0, len(source), PIECE_BYTES)
        ]
        for piece in pieces:
            piece.result()

    def _bring(self, piece: np.ndarray, target: Tensor) -> None:
        if not hasattr(self._lanes, "bring"):
            self._lanes.bring = self._make_lane()
        self._lanes.bring(piece, target)


class _CudaLane:
    """A pinned buffer and a stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._buffer = torch.empty(PIECE_BYTES, dtype=torch.uint8).pin_memory()

    def __call__(self, piece: np.ndarray, target: Tensor) -> None:
        staged = self._buffer[: len(piece)]
        staged.numpy()[:] = piece  # numpy lets other threads run meanwhile
        with torch.cuda.stream(self._stream):
            target.copy_(staged, non_blocking=True)
        self._stream.synchronize()


_UPLOADERS: dict[torch.device, Uploader] = {}
_MUTEX = threading.Lock()


def to_device(view: np.ndarray, device: torch.device) -> Tensor:
    """Bytes, uint8 of any shape, read-only or not, on a device: always a copy."""
    if device.type != "cuda":
        # torch must not be shown memory that cannot be written.
        return torch.from_numpy(np.array(view)).to(device)
    out = torch.empty(view.shape, dtype=torch.uint8, device=device)
    # The memory may be that of a tensor which work that was begun earlier still reads.
    torch.cuda.current_stream(device).synchronize()
    with _MUTEX:
        uploader = _UPLOADERS.setdefault(device, Uploader(lambda: _CudaLane(device)))
    uploader.upload(np.ascontiguousarray(view), out)
    return out
