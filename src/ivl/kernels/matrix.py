"""A quantized matrix, as the layers of a model see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Matrix(ABC):
    """A weight of (rows, columns) that stays quantized in memory.

    Immutable. Implementations keep the weights as suits their device, in at most 1.15 times the
    bytes of the blocks they were made of.
    """

    rows: int
    columns: int
    format: str
    """The name of the block format, such as `Q4_K`."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that the matrix keeps in memory (a mapped file's pages counted)."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., columns) -> x W^T + bias, (..., rows), in the type of x."""

    @abstractmethod
    def rows_at(self, ids: Tensor) -> Tensor:
        """The rows `ids` (...,) int64, dequantized: float32 (..., columns)."""

    def dequantize(self) -> Tensor:
        """The whole matrix, float32 (rows, columns); for tests and for small matrices."""
        return self.rows_at(torch.arange(self.rows))


class StackedMatrix(Matrix):
    """Matrices of several formats, one below the other: the query, key and value projections of a
    vision tower, which the model applies as one."""

    def __init__(self, parts: Sequence[Matrix]) -> None:
        self.parts = tuple(parts)
        self.rows = sum(part.rows for part in parts)
        self.columns = parts[0].columns
        self.format = "+".join(dict.fromkeys(part.format for part in parts))

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.cat([part.linear(x) for part in self.parts], dim=-1)
        return out if bias is None else out + bias.to(out.dtype)

    def rows_at(self, ids: Tensor) -> Tensor:
        out = torch.empty((*ids.shape, self.columns), dtype=torch.float32, device=ids.device)
        first = 0
        for part in self.parts:
            here = (ids >= first) & (ids < first + part.rows)
            out[here] = part.rows_at(ids[here] - first)
            first += part.rows
        return out
