"""How many bytes a tensor takes in every format, in files and in memory: numbers only, no NumPy.

For planning, and for whatever else must answer before anything heavy is imported. Tests hold the
numbers against the formats themselves (`ivl.quant.formats`) and against the C++ kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PANEL_ROWS = 16
GROUP_COLUMNS = 32
LINE_BYTES = 64
STRIP_COLUMNS = 128


@dataclass(frozen=True, slots=True)
class BlockSize:
    """`size` neighbouring weights take `num_bytes` bytes in a file.

    `bits` of a level and `scale_bytes` of a panel's block are those of the kernels' packed layout
    (`csrc/variant/layout.hpp`); 0 for floats, which stay as they are in the file. `strip_bytes` are
    for the scales of a strip on a GPU (`ivl.kernels.triton.layout`).
    """

    size: int
    num_bytes: int
    bits: int = 0
    scale_bytes: int = 0
    strip_bytes: int = 0


BLOCK_SIZES: dict[str, BlockSize] = {
    "F32": BlockSize(1, 4),
    "F16": BlockSize(1, 2),
    "BF16": BlockSize(1, 2),
    "Q8_0": BlockSize(32, 34, 8, 32, 8),
    "Q4_0": BlockSize(32, 18, 4, 32, 8),
    "Q4_1": BlockSize(32, 20, 4, 64, 16),
    "Q5_0": BlockSize(32, 22, 5, 32, 8),
    "Q5_1": BlockSize(32, 24, 5, 64, 16),
    "Q2_K": BlockSize(256, 84, 2, 320, 10),
    "Q3_K": BlockSize(256, 110, 3, 288, 9),
    "Q4_K": BlockSize(256, 144, 4, 320, 10),
    "Q5_K": BlockSize(256, 176, 5, 320, 10),
    "Q6_K": BlockSize(256, 210, 6, 288, 9),
    "IQ4_NL": BlockSize(32, 18, 4, 32, 8),
    "IQ4_XS": BlockSize(256, 136, 4, 160, 5),
    "AWQ": BlockSize(128, 68, 4, 48, 3),
}


def stored_bytes(format_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor (..., columns) in a file, without padding."""
    block = BLOCK_SIZES[format_name]
    return math.prod(shape[:-1]) * (shape[-1] // block.size) * block.num_bytes


def packed_bytes(format_name: str, rows: int, columns: int) -> int:
    """Bytes of a matrix as the CPU kernels keep it: panels of 16 rows, the last one filled up."""
    block = BLOCK_SIZES[format_name]
    if not block.bits:
        return rows * columns * block.num_bytes
    scales = _rounded(columns // block.size * block.scale_bytes, LINE_BYTES)
    levels = columns // GROUP_COLUMNS * block.bits * LINE_BYTES
    return -(-rows // PANEL_ROWS) * (scales + levels)


def gpu_bytes(format_name: str, rows: int, columns: int) -> int:
    """Bytes of a matrix as the kernels for GPUs keep it: strips of 128 columns, the last one filled
    up. One that is not quantized becomes 16 bits."""
    block = BLOCK_SIZES[format_name]
    if not block.bits:
        return rows * columns * 2
    strips = -(-columns // STRIP_COLUMNS)
    return rows * strips * (block.bits * STRIP_COLUMNS // 8 + block.strip_bytes)


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
