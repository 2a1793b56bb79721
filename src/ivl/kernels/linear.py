"""The layers of a model that run on our kernels. They take the places of torch's own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ivl.kernels import dispatch
from ivl.kernels.matrix import Matrix, float_linear


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


Narrow = Literal["int8", "fp8"]
TYPES: dict[Narrow, tuple[torch.dtype, float]] = {
    "int8": (torch.int8, 127.0),
    "fp8": (torch.float8_e4m3fn, 448.0),
}
UNIT = 16
"""Inputs and outputs must be multiples of this."""
LEAST_ROWS = 17
"""The product of int8 wants more rows than 16."""


class NarrowLinear(nn.Module):
    """A linear layer whose weight and activations are rounded to 8 bits."""

    def __init__(self, linear: nn.Linear, kind: Narrow) -> None:
        """`linear`: of `can_be`; its weight is not kept."""
        super().__init__()
        self.kind: Narrow = kind
        values, scale = self._rounded(linear.weight.detach())
        self.weight = nn.Parameter(values, requires_grad=False)
        self.scale = nn.Parameter(scale[:, 0], requires_grad=False)
        self.bias = linear.bias

    @staticmethod
    def can_be(linear: nn.Module) -> bool:
        """Whether a layer has a shape that the products take."""
        return (
            isinstance(linear, nn.Linear)
            and linear.in_features % UNIT == 0
            and linear.out_features % UNIT == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the type of x."""
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        if count < LEAST_ROWS:
            rows = torch.cat([rows, rows.new_zeros(LEAST_ROWS - count, rows.shape[1])])
        values, scale = self._rounded(rows)
        out = self._sums(values).float() * scale * self.scale
        if self.bias is not None:
            out = out + self.bias.float()
        return out[:count].to(x.dtype).reshape(*x.shape[:-1], -1)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (rows, columns) in the narrow type, and the scales (rows, 1)."""
        dtype, largest = TYPES[self.kind]
        wide = x.float()
        scale = wide.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
        wide = wide / scale
        return (wide.round() if self.kind == "int8" else wide).to(dtype), scale

    def _sums(self, values: Tensor) -> Tensor:
        if self.kind == "int8":
            return torch._int_mm(values, self.weight.T)  # pyright: ignore[reportPrivateImportUsage]
        one = torch.ones((), device=values.device)
        return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            values, self.weight.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )


class RMSNorm(nn.Module):
    """x / rms(x) * weight. The statistics are taken in float32 whatever the weights' type.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467; the rounding follows `Qwen2RMSNorm` and
    `InternRMSNorm`, which cast back before they multiply by the weight.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if dispatch.runs_triton(x.device):
            from ivl.kernels.triton.pointwise import rms_norm

            return rms_norm(x, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)
