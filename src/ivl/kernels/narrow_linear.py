"""Products of int8 or 8-bit floats on a GPU, for many rows at once: the vision tower's.

They are PyTorch's `_int_mm` and `_scaled_mm`, on tensor cores. Each row of activations and each
output of the weight has a scale: its largest magnitude becomes the largest number of the type.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

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
