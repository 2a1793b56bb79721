"""The layers of a model that run on our kernels. They take the places of torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ivl.kernels.float_linear import float_linear
from ivl.kernels.matrix import Matrix


class Linear(nn.Linear):
    """`nn.Linear` that takes our product on a CPU where that is the faster one."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return float_linear(input, self.weight, self.bias)


class QuantizedLinear(nn.Module):
    """`nn.Linear` over a `Matrix`. The bias, if there is one, is dense."""

    def __init__(self, matrix: Matrix, bias: Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.in_features, self.out_features = matrix.columns, matrix.rows

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the type of x."""
        return self.matrix.linear(x, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.matrix.format}"


class QuantizedEmbedding(nn.Module):
    """`nn.Embedding` over a `Matrix`; gives rows in `dtype`."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix, self.dtype = matrix, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...,) int64 -> (..., columns)."""
        return self.matrix.rows_at(ids).to(self.dtype)
