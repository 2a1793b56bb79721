"""Products with weights of 16 or 32 bits on CPUs: ours or torch's, whichever is faster there.

With few rows of activations the weights are read once, at the speed of the memory; torch reads
bfloat16 at about half of that. With many rows it depends on the processor: one with fast products
of 16-bit numbers is best left to torch (oneDNN), the others widen to float32 faster in our kernel.
That is measured once, when it is first needed.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # pyright: ignore[reportPrivateImportUsage]

from ivl.kernels import cpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The types that kernels know."""

FEW_ROWS = 8
"""Up to so many rows our kernel reads the weights only once, and is never the slower one."""

TRIAL_SHAPE = (192, 1024, 1024)
"""Rows of activations, outputs and inputs of the product that the choice is measured with."""


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., columns) times weight (rows, columns), plus bias: (..., rows), in the type of x.

    Sums are in float32. The types of x, weight and bias may differ.
    """
    num_rows = x.numel() // max(1, weight.shape[1])
    if can_multiply(x, weight) and (num_rows <= FEW_ROWS or ours_is_faster(weight.dtype)):
        return _multiply(x, weight, bias)
    if x.dtype == weight.dtype:
        return torch.nn.functional.linear(x, weight, bias)
    bias = None if bias is None else bias.to(weight.dtype)
    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def can_multiply(x: Tensor, weight: Tensor) -> bool:
    """Whether our kernel can: on a CPU, with the extension, and no gradient is wanted."""
    return (
        weight.device.type == "cpu"
        and x.dtype in DTYPES
        and weight.dtype in DTYPES
        and weight.is_contiguous()
        and not (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad))
        and cpu.extension() is not None
    )


@functools.cache
def ours_is_faster(dtype: torch.dtype) -> bool:
    """Whether products with many rows are clearly faster in our kernel: measured, some 20 ms.

    Never for float32, where both do the same.
    """
    if dtype == torch.float32:
        return False
    rows, outputs, inputs = TRIAL_SHAPE
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)

    def seconds(ours: bool) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            if ours:
                _multiply(x, weight, None)
            else:
                torch.nn.functional.linear(x, weight)
            best = min(best, time.perf_counter() - began)
        return best

    return seconds(ours=True) < 0.8 * seconds(ours=False)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    extension = cpu.extension()
    assert extension is not None
    rows, columns = weight.shape
    if x.shape[-1] != columns:
        raise ValueError(f"x must be (..., {columns}), not {tuple(x.shape)}")
    x = x.detach().contiguous()
    out = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
    bias = None if bias is None else bias.detach().float().contiguous()
    extension.float_matmul(
        to_dlpack(weight.detach()),
        to_dlpack(x),
        None if bias is None else to_dlpack(bias),
        to_dlpack(out),
    )
    return out
