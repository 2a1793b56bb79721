"""What becomes of a mapped file's pages after its weights were repacked."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from ivl.kernels.mapped import release_pages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_released_pages_leave_memory_and_keep_their_contents(tmp_path: Path) -> None:
    contents = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8)
    path = tmp_path / "weights"
    contents.tofile(path)
    with path.open("rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    view = np.frombuffer(mapping, np.uint8, 7 << 20, 1000).reshape(7, -1)
    assert view.sum() == contents[1000 : 1000 + view.size].sum()
    before = resident_bytes(path)
    assert release_pages(view)
    assert resident_bytes(path) <= before - (6 << 20)
    assert np.array_equal(view.reshape(-1), contents[1000 : 1000 + view.size])


def test_memory_that_is_no_file_is_left_alone() -> None:
    array = np.arange(1 << 20, dtype=np.uint8)
    assert not release_pages(array[5000:])
    assert np.array_equal(array, np.arange(1 << 20, dtype=np.uint8))


def resident_bytes(path: Path) -> int:
    """How much of a mapped file is in this process's memory, as Linux tells it."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return 1024 * next(int(row.split()[1]) for row in lines if row.startswith("Rss:"))
    raise AssertionError(f"{path} is not mapped")
