"""Chooses the implementation of a quantized matrix."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

import numpy as np
import torch

from ivl.kernels import cpu
from ivl.kernels.mapped import release_pages
from ivl.kernels.matrix import (
    FLOAT_DTYPES,
    CpuFloatMatrix,
    CpuMatrix,
    Matrix,
    ReferenceMatrix,
    StackedMatrix,
)
from ivl.kernels.triton.layout import LAYOUTS
from ivl.quant.formats import find_format


def pack(
    blocks: np.ndarray | Sequence[np.ndarray], format: str, device: torch.device | str = "cpu"
) -> Matrix:
    """A matrix of blocks uint8 (rows, row_bytes), in the best implementation for the device; of
    several arrays of rows, such as those of queries, keys and values, one below the other.

    The blocks may be a view of a mapped file; they are copied where the implementation keeps them
    in another order, and kept where it does not. Raises UnsupportedError for unknown formats.
    """
    found = find_format(format)
    parts = [blocks] if isinstance(blocks, np.ndarray) else blocks
    extension = cpu.extension() if torch.device(device).type == "cpu" else None
    if extension is not None and found.name in FLOAT_DTYPES:  # they stay where they are
        matrices = [CpuFloatMatrix(part, format) for part in parts]
        return matrices[0] if len(matrices) == 1 else StackedMatrix(matrices)
    if extension is not None and extension.supports_format(found.type_id):
        if CpuMatrix.can_join(parts, extension):
            return CpuMatrix(parts[0], format, extension, *parts[1:])
    if len(parts) > 1:
        whole = np.concatenate(parts)
        for part in parts:
            release_pages(part)
        return pack(whole, format, device)
    if runs_triton(device) and found.name in LAYOUTS:
        from ivl.kernels.triton.matrix import TritonMatrix

        return TritonMatrix(parts[0], found.name, device)
    return ReferenceMatrix(parts[0], format, device)


def keeps_blocks(format: str, device: torch.device | str) -> bool:
    """Whether matrices of a format are fast on a device as they are. Where they are not, such as
    those of 16 bits on a GPU, they had better become tensors of the model's type."""
    if torch.device(device).type == "cpu":
        return True
    return runs_triton(device) and find_format(format).name in LAYOUTS


def runs_triton(device: torch.device | str) -> bool:
    """Whether `ivl.kernels.triton` runs on the device: on GPUs that torch calls `cuda`."""
    return torch.device(device).type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
