"""Quantized matrices by dequantizing: slow, and right by definition."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ivl.kernels.matrix import Matrix
from ivl.quant.formats import find_format

ROWS_AT_ONCE = 1024
"""Rows that are dequantized at once: bounds the memory beside the matrix."""


class ReferenceMatrix(Matrix):
    """Keeps the blocks as they are in the file, and dequantizes a few rows at a time."""

    def __init__(self, blocks: np.ndarray, format: str, device: torch.device | str = "cpu") -> None:
        """blocks: uint8 (rows, row_bytes), kept without a copy. `device`: where results live."""
        self._format = find_format(format)
        self._blocks, self._device = blocks, torch.device(device)
        self.format = self._format.name
        self.rows = blocks.shape[0]
        self.columns = blocks.shape[1] // self._format.block_bytes * self._format.block_size

    @property
    def num_bytes(self) -> int:
        return self._blocks.nbytes

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.empty((*x.shape[:-1], self.rows), dtype=x.dtype, device=x.device)
        for start in range(0, self.rows, ROWS_AT_ONCE):
            part = self._rows(np.s_[start : start + ROWS_AT_ONCE])
            # float32 throughout: half precision on a CPU would round the weights once more.
            product = x.float() @ part.to(x.device).T
            out[..., start : start + len(part)] = product.to(x.dtype)
        return out if bias is None else out + bias

    def rows_at(self, ids: Tensor) -> Tensor:
        flat = self._rows(ids.flatten().cpu().numpy())
        return flat.to(ids.device).reshape(*ids.shape, self.columns)

    def _rows(self, which: slice | np.ndarray) -> Tensor:
        return torch.from_numpy(self._format.dequantize(self._blocks[which]))
