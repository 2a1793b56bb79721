"""Chooses the implementation of a quantized matrix."""

from __future__ import annotations

import numpy as np
import torch

from ivl.kernels.matrix import Matrix
from ivl.kernels.reference import ReferenceMatrix


def pack(blocks: np.ndarray, format: str, device: torch.device | str = "cpu") -> Matrix:
    """A matrix of blocks uint8 (rows, row_bytes), in the best implementation for the device.

    The blocks may be a view of a mapped file; they are copied where the implementation keeps them
    in another order, and kept where it does not. Raises UnsupportedError for unknown formats.
    """
    return ReferenceMatrix(blocks, format, device)
