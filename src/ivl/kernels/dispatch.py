"""Chooses the implementation of a quantized matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ivl.kernels import cpu
from ivl.kernels.cpu_matrix import FLOAT_DTYPES, CpuFloatMatrix, CpuMatrix
from ivl.kernels.mapped import release_pages
from ivl.kernels.matrix import Matrix, StackedMatrix
from ivl.kernels.reference import ReferenceMatrix
from ivl.quant.formats import find_format


def pack(blocks: np.ndarray, format: str, device: torch.device | str = "cpu") -> Matrix:
    """A matrix of blocks uint8 (rows, row_bytes), in the best implementation for the device.

    The blocks may be a view of a mapped file; they are copied where the implementation keeps them
    in another order, and kept where it does not. Raises UnsupportedError for unknown formats.
    """
    if torch.device(device).type == "cpu":
        extension = cpu.extension()
        found = find_format(format)
        if extension is not None and extension.supports_format(found.type_id):
            return CpuMatrix(blocks, format, extension)
        if extension is not None and found.name in FLOAT_DTYPES:
            return CpuFloatMatrix(blocks, format)
    return ReferenceMatrix(blocks, format, device)


def pack_parts(
    parts: Sequence[np.ndarray], format: str, device: torch.device | str = "cpu"
) -> Matrix:
    """`pack` of rows that lie in several arrays, such as those of queries, keys and values."""
    if len(parts) == 1:
        return pack(parts[0], format, device)
    extension = cpu.extension() if torch.device(device).type == "cpu" else None
    if extension is not None:
        found = find_format(format)
        if found.name in FLOAT_DTYPES:  # they stay where they are
            return StackedMatrix([CpuFloatMatrix(part, format) for part in parts])
        if extension.supports_format(found.type_id) and CpuMatrix.can_join(parts, extension):
            return CpuMatrix(parts[0], format, extension, *parts[1:])
    whole = np.concatenate(parts)
    for part in parts:
        release_pages(part)
    return pack(whole, format, device)
