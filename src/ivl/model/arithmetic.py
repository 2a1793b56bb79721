"""The vision tower in another arithmetic: int8, float16 or bfloat16 on a CPU, int8 or 8-bit floats
on a GPU.

`use_arithmetic` takes the place of a loaded model's tower. On a CPU its layers run over
kernels/dense.py: the residual is float32; what is rounded is the input of each product, row by row,
in the same pass as the norm before it. On a GPU only its products change, to those of tensor cores.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivl.errors import UnsupportedError
from ivl.kernels import cpu
from ivl.kernels.dense import Arithmetic, DenseMatrix, Norm, Rows, arithmetics, tile_attention
from ivl.kernels.linear import Narrow, NarrowLinear, QuantizedLinear, RMSNorm
from ivl.kernels.mapped import release_freed
from ivl.kernels.matrix import LEEWAY, CpuFloatMatrix, StackedMatrix
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
    measurement finds them about as fast as torch's, and never int8, which costs accuracy. Weights
    are replaced layer by layer, so that they are never in memory twice. Raises UnsupportedError for
    an arithmetic that this machine does not have.
    """
    if choice == "auto":
        if model.vision_device.type != "cpu" or not _is_dense(model.vision):
            return
        choice = fastest(model.dtype)
    if choice == "torch" or model.vision is None:
        return
    if model.vision_device.type == "cuda" and choice in ("int8", "fp8"):
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
            "float16 needs a processor with AVX-512 FP16, bfloat16 one with AVX-512 BF16, int8 "
            "any, and all the C++ extension: `ivl info --machine` says what there is.",
        )
    model.vision = CpuVisionTower(model.vision, choice)


def fastest(dtype: torch.dtype) -> VisionChoice:
    """The fastest of torch's products in `dtype` and those of ours that are no less exact: some
    milliseconds of measuring, once."""
    exact: list[Arithmetic] = ["float16", "bfloat16"] if dtype == torch.bfloat16 else ["float16"]
    return _fastest_of(tuple(one for one in exact if one in arithmetics()), dtype)


@functools.cache
def _fastest_of(usable: tuple[Arithmetic, ...], dtype: torch.dtype) -> VisionChoice:
    if not usable:
        return "torch"
    x, weight = torch.randn(512, 1024), torch.randn(1024, 1024)
    narrow_x, narrow_weight = x.to(dtype), weight.to(dtype)
    torch_s = cpu.fastest_s(lambda: F.linear(narrow_x, narrow_weight), 4)
    best: VisionChoice = "torch"
    best_s = LEEWAY * torch_s
    for arithmetic in usable:
        ours_s = _product_s(x, weight, arithmetic)
        if ours_s < best_s:
            best, best_s = arithmetic, ours_s
    return best


def _product_s(x: Tensor, weight: Tensor, arithmetic: Arithmetic) -> float:
    matrix, rows = DenseMatrix(weight, None, arithmetic), Rows(arithmetic)
    out = torch.empty(len(x), len(weight))
    return cpu.fastest_s(lambda: matrix.multiply(rows.fill(x), out), 4)


class CpuVisionTower(nn.Module):
    """`VisionTower` in another arithmetic; takes the layers of `tower` apart."""

    def __init__(self, tower: nn.Module, arithmetic: Arithmetic) -> None:
        super().__init__()
        assert isinstance(tower, VisionTower)
        self.arithmetic: Arithmetic = arithmetic
        # Where pixels and weights are of that type already, a product of it loses nothing.
        patch = tower.embed.patch
        exact = arithmetic == "bfloat16" and patch.weight.dtype == torch.bfloat16
        self._patch = (
            DenseMatrix(patch.weight.flatten(1), patch.bias, arithmetic) if exact else None
        )
        self.embed = tower.embed.float()
        self.layers: list[CpuVisionLayer] = []
        rows, memory = Rows(arithmetic), Memory()  # for all layers: they keep what they take
        self._rows = rows
        while len(tower.layers):
            layer = tower.layers.pop(0)
            assert isinstance(layer, VisionLayer)
            self.layers.append(CpuVisionLayer(layer, arithmetic, rows, memory))
            del layer
            release_freed()  # at once: the packed layers do not take what the others leave

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised (n, 3, tile_px, tile_px) -> (n, patches, hidden), in the type of pixels."""
        x = self._embed(pixels).contiguous()
        for layer in self.layers:
            layer.advance(x)
        return x[:, 1:].to(pixels.dtype)

    def _embed(self, pixels: Tensor) -> Tensor:
        if self._patch is None:
            return self.embed(pixels.float())
        patches = self.embed.cut(pixels).float()
        x = torch.empty((len(patches) * patches.shape[1], self._patch.outputs))
        self._patch.multiply(self._rows.fill(patches.flatten(0, 1)), x)
        return self.embed.complete(x.unflatten(0, patches.shape[:2]))


class Memory:
    """Activations between products. It is kept from call to call: to be given pages anew, and have
    them cleared, costs a small tower a twentieth of its time."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def of(self, name: str, *shape: int) -> Tensor:
        """float32 numbers of this shape, of any value."""
        count = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < count:
            with torch.inference_mode(False):  # whoever comes next may not be in that mode
                held = self._held[name] = torch.empty(count)
        return held[:count].view(shape)


class CpuVisionLayer:
    def __init__(
        self, layer: VisionLayer, arithmetic: Arithmetic, rows: Rows, memory: Memory
    ) -> None:
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
        self.rows, self.memory = rows, memory

    def advance(self, x: Tensor) -> None:
        """The residual x (n, positions, hidden), float32 and contiguous, one layer on, in place."""
        flat = x.flatten(0, 1)
        width = flat.shape[1]
        qkv = self.memory.of("qkv", len(flat), 3 * width)
        self.qkv.multiply(self.rows.fill(flat, self.norm1), qkv)
        if self.q_norm is not None and self.k_norm is not None:
            qkv[:, :width] = self.q_norm(qkv[:, :width])
            qkv[:, width : 2 * width] = self.k_norm(qkv[:, width : 2 * width])
        out = tile_attention(
            qkv.view(*x.shape[:2], -1),
            self.num_heads,
            self.memory.of("heads", *x.shape),
            self.rows.arithmetic,
        )
        self.proj.add_scaled(self.rows.fill(out.flatten(0, 1)), flat, self.scale1)
        for part in flat.split(ROWS_AT_ONCE):
            hidden = self.memory.of("hidden", len(part), self.fc1.outputs)
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
