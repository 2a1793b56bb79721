"""A quantized matrix, as the layers of a model see it."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
        import torch

        return self.rows_at(torch.arange(self.rows))
