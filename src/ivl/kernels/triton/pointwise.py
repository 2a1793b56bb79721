"""What lies between the products of a decoder layer, each in one pass over its rows.

Every step is rounded to the type of the activations where PyTorch's operations round it, so that
the results are those of the plain layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ivl.kernels.triton import Kernel


@triton.jit
def _rms_norm(
    x, delta, weight, total, out, width, eps, adds: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """A row: total = x + delta where `adds`, and out = rms_norm(total) * weight."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, block)
    inside = k < width
    dtype = out.dtype.element_ty
    value = tl.load(x + row * width + k, mask=inside, other=0.0).to(tl.float32)
    if adds:
        value += tl.load(delta + row * width + k, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(dtype)
        tl.store(total + row * width + k, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    normed = (value * scale).to(dtype).to(tl.float32)
    factor = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + k, (factor * normed).to(dtype), mask=inside)


@triton.jit
def _swiglu(gate, up, out, count, block: tl.constexpr):
    """out = silu(gate) * up"""
    k = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = k < count
    dtype = out.dtype.element_ty
    g = tl.load(gate + k, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + k, mask=inside, other=0.0).to(tl.float32)
    active = (g / (1.0 + tl.exp(-g))).to(dtype).to(tl.float32)
    tl.store(out + k, (active * u).to(dtype), mask=inside)


@triton.jit
def _rotate(x, cos, sin, out, heads, half, block: tl.constexpr):
    """One head of one token: halves of it are turned as pairs."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, block)
    inside = k < half
    dtype = out.dtype.element_ty
    place = (token * heads + head) * 2 * half + k
    angle = token * 2 * half + k
    first = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + place + half, mask=inside, other=0.0).to(tl.float32)
    c0 = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    c1 = tl.load(cos + angle + half, mask=inside, other=0.0).to(tl.float32)
    s0 = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    s1 = tl.load(sin + angle + half, mask=inside, other=0.0).to(tl.float32)
    low = (first * c0).to(dtype).to(tl.float32) - (second * s0).to(dtype).to(tl.float32)
    high = (second * c1).to(dtype).to(tl.float32) + (first * s1).to(dtype).to(tl.float32)
    tl.store(out + place, low.to(dtype), mask=inside)
    tl.store(out + place + half, high.to(dtype), mask=inside)


# To a type checker they are the functions that Triton compiles.
rms_norm_kernel: Kernel = _rms_norm
swiglu_kernel: Kernel = _swiglu
rotate_kernel: Kernel = _rotate
SWIGLU_BLOCK = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., width) / rms(x) * weight, as `ivl.kernels.linear.RMSNorm`."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty_like(flat)
    _launch_norm(flat, flat, weight, flat, out, eps, adds=False)
    return out.reshape(x.shape)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta, and that normed: both (..., width)."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    total, out = torch.empty_like(flat), torch.empty_like(flat)
    _launch_norm(flat, delta.reshape(flat.shape).contiguous(), weight, total, out, eps, adds=True)
    return total.reshape(x.shape), out.reshape(x.shape)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    if out.numel():
        grid = (triton.cdiv(out.numel(), SWIGLU_BLOCK),)
        with torch.cuda.device_of(out):
            swiglu_kernel[grid](gate, up, out, out.numel(), block=SWIGLU_BLOCK, num_warps=4)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (tokens, heads, head_dim), cos and sin (tokens, head_dim), as `model.decoder.rotate`."""
    x = x.contiguous()
    tokens, heads, width = x.shape
    out = torch.empty_like(x)
    if out.numel():
        with torch.cuda.device_of(out):
            rotate_kernel[(tokens, heads)](
                x, cos.contiguous(), sin.contiguous(), out, heads, width // 2,
                block=triton.next_power_of_2(width // 2), num_warps=1,
            )  # fmt: skip
    return out


def _launch_norm(
    x: Tensor, delta: Tensor, weight: Tensor, total: Tensor, out: Tensor, eps: float, *, adds: bool
) -> None:
    rows, width = x.shape
    if out.numel():
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(out):
            rms_norm_kernel[(rows,)](
                x, delta, weight, total, out, width, eps, adds=adds, block=block,
                num_warps=min(16, max(1, block // 512)),
            )  # fmt: skip
