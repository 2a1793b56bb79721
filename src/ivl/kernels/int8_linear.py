"""Products of int8 on a GPU, for many rows at once: the vision tower's.

PyTorch's `_int_mm` is the library's product on tensor cores; sums are int32 and exact. Each row of
activations and each output of the weight has a scale, its largest magnitude / 127.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNIT = 8
"""Inputs and outputs must be multiples of this."""
LEAST_ROWS = 17
"""The product wants more rows than 16."""


class Int8Linear(nn.Module):
    """A linear layer whose weight and activations are rounded to 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        """`linear`: of `can_be`; its weight is not kept."""
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale[:, 0], requires_grad=False)
        self.bias = linear.bias

    @staticmethod
    def can_be(linear: nn.Module) -> bool:
        """Whether a layer has a shape that the product takes."""
        return (
            isinstance(linear, nn.Linear)
            and linear.in_features % UNIT == 0
            and linear.out_features % UNIT == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the type of x."""
        rows = x.reshape(-1, x.shape[-1]).float()
        count = len(rows)
        if count < LEAST_ROWS:
            rows = torch.cat([rows, rows.new_zeros(LEAST_ROWS - count, rows.shape[1])])
        scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        sums = torch._int_mm((rows / scale).round().to(torch.int8), self.weight.T)  # pyright: ignore[reportPrivateImportUsage]
        out = sums.float() * scale * self.scale
        if self.bias is not None:
            out = out + self.bias.float()
        return out[:count].to(x.dtype).reshape(*x.shape[:-1], -1)
