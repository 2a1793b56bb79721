"""Sizes without NumPy are those of the formats themselves, and of the kernels' packed matrices."""

from __future__ import annotations

import numpy as np
import pytest

from ivl.kernels import cpu
from ivl.kernels.matrix import CpuMatrix
from ivl.quant.block_sizes import BLOCK_SIZES, packed_bytes, stored_bytes
from ivl.quant.formats import find_format


@pytest.mark.parametrize("name", BLOCK_SIZES)
def test_files(name: str) -> None:
    assert stored_bytes(name, (3, 5, 512)) == 15 * find_format(name).row_bytes(512)


@pytest.mark.parametrize("name", [name for name, block in BLOCK_SIZES.items() if block.bits])
@pytest.mark.parametrize("shape", [(1, 256), (33, 768), (16, 2560)])
def test_memory(name: str, shape: tuple[int, int]) -> None:
    extension = cpu.extension()
    if extension is None:
        pytest.skip("the C++ extension is not built")
    rows, columns = shape
    blocks = np.zeros((rows, find_format(name).row_bytes(columns)), np.uint8)
    assert packed_bytes(name, rows, columns) == CpuMatrix(blocks, name, extension).num_bytes
