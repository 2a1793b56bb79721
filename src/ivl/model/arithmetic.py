"""The vision tower in another arithmetic: int8, float16 or bfloat16 on a CPU, int8 or 8-bit floats
on a GPU.

`use_arithmetic` takes the place of a loaded model's tower. On a CPU its layers run over
kernels/dense.py: the residual is float32; what is rounded is the input of each product, row by row,
in the same pass as the norm before it. On a GPU only its products change, to those of tensor cores.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivl.errors import UnsupportedError
from ivl.kernels import cpu
from ivl.kernels.dense import Arithmetic, DenseMatrix, Norm, Rows, arithmetics, tile_attention
from ivl.kernels.linear import Narrow, NarrowLinear, QuantizedLinear, RMSNorm
from ivl.kernels.mapped import release_freed
from ivl.kernels.matrix import CpuFloatMatrix, StackedMatrix
from ivl.model.internvl import InternVL
from ivl.model.vision import VisionAttention, VisionLayer, VisionMLP, VisionTower

VisionChoice = Literal["auto", "torch", "float16", "bfloat16", "int8", "fp8"]
CHOICES: tuple[VisionChoice, ...] = ("auto", "torch", "float16", "bfloat16", "int8", "fp8")
FP8_SINCE = (8, 9)
"""Compute capability."""
ROWS_AT_ONCE = 512
"""Positions whose hidden values of the MLP are in memory at once; they stay in the cache."""


def use_arithmetic(model: InternVL, choice: VisionChoice) -> None:
    """Replaces the tower of a model on the CPU, or its products on a GPU (int8, fp8); `torch`
    leaves it as it is.

    `auto` takes float16, and for a model of bfloat16 that type's own products, where a short
    measurement finds them faster than torch's, and never int8, which costs accuracy. Weights are replaced layer by layer, so that they are never in
    memory twice. Raises UnsupportedError for an arithmetic that this machine does not have.
    """
    if choice == "auto":
        if model.vision_device.type != "cpu" or not _is_dense(model.vision):
            return
        choice = fastest(model.dtype)
    if choice == "torch" or model.vision is None:
        return
    if model.vision_device.type == "cuda" and choice not in ("float16", "bfloat16"):
        if choice == "fp8" and torch.cuda.get_device_capability(model.vision_device) < FP8_SINCE:
            raise UnsupportedError(
                "This GPU has no products of 8-bit floats.",
                'They came with compute capability 8.9 (RTX 40, L40S, H100). Take `vision="int8"`.',
            )
        use_narrow(model.vision, choice)
        return
    if model.vision_device.type != "cpu":
        raise UnsupportedError(
            f"The vision tower runs in {choice} on a CPU only, and it is on {model.vision_device}.",
            'Leave out `vision`, or load the model with `device="cpu"`.',
        )
    if choice == "fp8":
        raise UnsupportedError(
            "The vision tower runs in fp8 on GPUs only.",
            'On a CPU int8 is as small: `vision="int8"`.',
        )
    if choice not in arithmetics():
        raise UnsupportedError(
            f"The vision tower cannot run in {choice} here.",
            "float16 needs a processor with AVX-512 FP16, bfloat16 one with AVX-512 BF16, int8 any, "
            "and all the C++ extension: "
            "`ivl info --machine` says what there is.",
        )
    model.vision = CpuVisionTower(model.vision, choice)


@functools.cache
def fastest(dtype: torch.dtype) -> VisionChoice:
    """The fastest of torch's products in `dtype` and those of ours that are no less exact: some
    milliseconds of measuring, once."""
    exact: list[Arithmetic] = ["float16"]
    if dtype == torch.bfloat16:
        exact.append("bfloat16")
    x, weight = torch.randn(512, 1024), torch.randn(1024, 1024)
    out, narrow_x, narrow_weight = torch.empty(512, 1024), x.to(dtype), weight.to(dtype)
    best: VisionChoice = "torch"
    best_s = cpu.fastest_s(lambda: F.linear(narrow_x, narrow_weight), 4) if exact else 0.0
    for arithmetic in exact:
        if arithmetic not in arithmetics():
            continue
        matrix, rows = DenseMatrix(weight, None, arithmetic), Rows(arithmetic)

        def product(matrix: DenseMatrix = matrix, rows: Rows = rows) -> None:
            matrix.multiply(rows.fill(x), out)

        ours_s = cpu.fastest_s(product, 4)
        if ours_s < best_s:
            best, best_s = arithmetic, ours_s
    return best


class CpuVisionTower(nn.Module):
    """`VisionTower` in another arithmetic; takes the layers of `tower` apart."""

    def __init__(self, tower: nn.Module, arithmetic: Arithmetic) -> None:
        super().__init__()
        assert isinstance(tower, VisionTower)
        self.arithmetic: Arithmetic = arithmetic
        self.embed = tower.embed.float()
        self.layers: list[CpuVisionLayer] = []
        rows = Rows(arithmetic)  # one for all layers: it keeps its memory
        while len(tower.layers):
            layer = tower.layers.pop(0)
            assert isinstance(layer, VisionLayer)
            self.layers.append(CpuVisionLayer(layer, arithmetic, rows))
            del layer
            release_freed()  # at once: the packed layers do not take what the others leave

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised (n, 3, tile_px, tile_px) -> (n, patches, hidden), in the type of pixels."""
        x = self.embed(pixels.float()).contiguous()
        for layer in self.layers:
            layer.advance(x)
        return x[:, 1:].to(pixels.dtype)


class CpuVisionLayer:
    def __init__(self, layer: VisionLayer, arithmetic: Arithmetic, rows: Rows) -> None:
        attn: VisionAttention = layer.attn
        self.norm1, self.norm2 = _norm(layer.norm1), _norm(layer.norm2)
        self.num_heads = attn.num_heads
        self.q_norm, self.k_norm = (
            norm.float() if isinstance(norm, RMSNorm) else None
            for norm in (attn.q_norm, attn.k_norm)
        )
        self.qkv, self.proj, self.fc1, self.fc2 = (
            _packed(linear, arithmetic)
            for linear in (attn.qkv, attn.proj, layer.mlp.fc1, layer.mlp.fc2)
        )
        self.scale1, self.scale2 = layer.scale1.detach().float(), layer.scale2.detach().float()
        self.rows = rows

    def advance(self, x: Tensor) -> None:
        """The residual x (n, positions, hidden), float32 and contiguous, one layer on, in place."""
        flat = x.flatten(0, 1)
        width = flat.shape[1]
        qkv = torch.empty((len(flat), 3 * width))
        self.qkv.multiply(self.rows.fill(flat, self.norm1), qkv)
        if self.q_norm is not None and self.k_norm is not None:
            qkv[:, :width] = self.q_norm(qkv[:, :width])
            qkv[:, width : 2 * width] = self.k_norm(qkv[:, width : 2 * width])
        out = tile_attention(
            qkv.view(*x.shape[:2], -1), self.num_heads, torch.empty_like(x), self.rows.arithmetic
        )
        self.proj.add_scaled(self.rows.fill(out.flatten(0, 1)), flat, self.scale1)
        for part in flat.split(ROWS_AT_ONCE):
            hidden = torch.empty((len(part), self.fc1.outputs))
            self.fc1.multiply(self.rows.fill(part, self.norm2), hidden, gelu=True)
            self.fc2.add_scaled(self.rows.fill(hidden), part, self.scale2)


def _norm(norm: nn.Module) -> Norm:
    if isinstance(norm, RMSNorm):
        return Norm(kind="rms", weight=norm.weight.detach().float(), bias=None, eps=norm.eps)
    assert isinstance(norm, nn.LayerNorm)
    weight, bias = norm.weight.detach().float(), norm.bias.detach().float()
    return Norm(kind="layer", weight=weight, bias=bias, eps=norm.eps)


def _packed(linear: nn.Module, arithmetic: Arithmetic) -> DenseMatrix:
    """The weight (outputs, inputs) of a layer in another arithmetic; it may be quantized."""
    if not isinstance(linear, QuantizedLinear):
        assert isinstance(linear, nn.Linear)
        return DenseMatrix(linear.weight, linear.bias, arithmetic)
    matrix = linear.matrix
    parts = matrix.parts if isinstance(matrix, StackedMatrix) else (matrix,)
    mapped = [part for part in parts if isinstance(part, CpuFloatMatrix)]
    if len(mapped) < len(parts):
        return DenseMatrix(matrix.dequantize(), linear.bias, arithmetic)
    first, *more = [part.weight for part in mapped]
    packed = DenseMatrix(first, linear.bias, arithmetic, *more)
    for part in mapped:
        part.release()
    return packed


def _is_dense(tower: nn.Module | None) -> bool:
    """Whether all weights have 16 bits or more; a quantized tower keeps its smaller ones."""
    return isinstance(tower, VisionTower) and all(
        module.matrix.format in ("F32", "F16", "BF16")
        for module in tower.modules()
        if isinstance(module, QuantizedLinear)
    )


def use_narrow(tower: nn.Module, kind: Narrow) -> None:
    """Replaces the products of a tower of plain weights, one by one. UnsupportedError for another,
    and for one that is streamed."""
    parts = [part for part in tower.modules() if isinstance(part, VisionAttention | VisionMLP)]
    places = [
        (part, name)
        for part in parts
        for name in (("qkv", "proj") if isinstance(part, VisionAttention) else ("fc1", "fc2"))
    ]
    if not isinstance(tower, VisionTower) or tower.streamed is not None:
        raise UnsupportedError(
            f"A streamed vision tower does not run in {kind}.", "Use one of the two."
        )
    if not all(NarrowLinear.can_be(getattr(part, name)) for part, name in places):
        raise UnsupportedError(
            f"This vision tower cannot run in {kind}: its weights are quantized, or their shapes "
            "do not fit.",
            "Use one of 16 bits, or leave out `vision`.",
        )
    for part, name in places:
        setattr(part, name, NarrowLinear(getattr(part, name), kind))
