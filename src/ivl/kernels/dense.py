"""Dense products of 8 and 16 bits on the CPU, for many rows at once: the vision tower's.

`csrc/dense.hpp` says how the numbers lie, and how exact the sums are.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ivl.kernels import cpu

Arithmetic = Literal["int8", "float16"]
PANEL = 32
ROW_UNITS = 64
FLOAT16_MOST = 100.0
"""Largest float16 weight, for sums of 32 products to stay in that type's range."""
_TYPES = {"int8": 0, "float16": 1}
_NORMS = {"none": 0, "layer": 1, "rms": 2}
_STORE, _GELU, _ADD_SCALED = 0, 1, 2


def arithmetics() -> tuple[Arithmetic, ...]:
    """What the instruction set in use offers; nothing without the extension."""
    module = cpu.extension()
    if module is None:
        return ()
    return ("int8", "float16") if module.has_float16_products() else ("int8",)


def _extension() -> ModuleType:
    module = cpu.extension()
    assert module is not None, "arithmetics() says what there is"
    return module


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """What is done to rows before they are rounded. LayerNorm has a bias, RMSNorm has none."""

    kind: Literal["layer", "rms"]
    weight: Tensor
    bias: Tensor | None
    eps: float


class Rows:
    """Activations (rows, width), normed and rounded to int8 or float16, with a scale for each row.

    The memory is kept from `fill` to `fill`.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic: Arithmetic = arithmetic
        self.values = torch.empty((0, 0), dtype=torch.uint8)
        self.scales = torch.empty(0)
        self.sums = torch.empty(0, dtype=torch.int32)

    def fill(self, x: Tensor, norm: Norm | None = None) -> Rows:
        """x float32 (rows, width), contiguous."""
        rows, width = x.shape
        row_bytes = _padded(width, ROW_UNITS) * (1 if self.arithmetic == "int8" else 2)
        if self.values.shape != (rows, row_bytes):
            self.values = torch.empty((rows, row_bytes), dtype=torch.uint8)
            self.scales, self.sums = torch.empty(rows), torch.empty(rows, dtype=torch.int32)
        _extension().dense_prepare(
            x,
            _TYPES[self.arithmetic],
            _NORMS[norm.kind if norm else "none"],
            norm.weight if norm else None,
            norm.bias if norm else None,
            norm.eps if norm else 0.0,
            self.values,
            self.scales,
            self.sums,
        )
        return self


class DenseMatrix:
    """A weight (outputs, inputs) in panels, with its bias."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, arithmetic: Arithmetic, *more: Tensor
    ) -> None:
        """The weight and the bias, of any float type, are copied.

        more: further rows of the weight, such as those of keys and values below the queries'.
        int8: the largest magnitude of each output's row becomes 127. float16: a row with a
        magnitude above `FLOAT16_MOST` is scaled down to it.
        """
        parts = (weight, *more)
        if any(len(part) % PANEL for part in parts[:-1]):
            parts = (torch.cat(parts),)
        self.outputs, self.inputs = sum(map(len, parts)), weight.shape[1]
        self.arithmetic: Arithmetic = arithmetic
        self.bias = None if bias is None else bias.detach().float().contiguous()
        value_bytes = 1 if arithmetic == "int8" else 2
        panel_bytes = PANEL * _padded(self.inputs, ROW_UNITS) * value_bytes
        num_panels = _padded(self.outputs, PANEL) // PANEL
        memory = _extension().weight_memory(num_panels * panel_bytes)
        self.panels = torch.from_numpy(memory).view(num_panels, panel_bytes)
        self.scales: Tensor | None = torch.empty(self.outputs)
        first = 0
        for part in parts:
            part, last = part.detach().contiguous(), first + len(part)
            _extension().dense_pack(
                _TYPES[arithmetic],
                part,
                FLOAT16_MOST,
                self.panels[first // PANEL : -(-last // PANEL)],
                self.scales[first:last],
            )
            first = last
        if arithmetic == "float16" and bool((self.scales == 1).all()):
            self.scales = None

    @property
    def num_bytes(self) -> int:
        return self.panels.nbytes

    def multiply(self, rows: Rows, out: Tensor, *, gelu: bool = False) -> Tensor:
        """out (rows, outputs) float32 = rows W^T + bias, then GELU (erf) if it is asked for."""
        return self._multiply(rows, out, _GELU if gelu else _STORE, None)

    def add_scaled(self, rows: Rows, out: Tensor, channel_scales: Tensor) -> Tensor:
        """out (rows, outputs) float32 += channel_scales * (rows W^T + bias)."""
        return self._multiply(rows, out, _ADD_SCALED, channel_scales)

    def _multiply(
        self, rows: Rows, out: Tensor, epilogue: int, channel_scales: Tensor | None
    ) -> Tensor:
        assert rows.arithmetic == self.arithmetic
        _extension().dense_multiply(
            _TYPES[self.arithmetic],
            rows.values,
            rows.scales,
            rows.sums,
            self.panels,
            self.scales,
            self.bias,
            out,
            epilogue,
            channel_scales,
        )
        return out


def tile_attention(qkv: Tensor, num_heads: int, out: Tensor) -> Tensor:
    """Attention of every position of a tile to every other, in float32.

    qkv (tiles, positions, 3 * width) -> out (tiles, positions, width). By float16 tiles where the
    processor has them and heads are whole panels; otherwise by torch.
    """
    tiles, positions, width = out.shape
    if "float16" in arithmetics() and width // num_heads % PANEL == 0:
        _extension().tile_attention(qkv, num_heads, out)
        return out
    q, k, v = qkv.view(tiles, positions, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v)
    out.view(tiles, positions, num_heads, -1).copy_(heads.transpose(1, 2))
    return out


def _padded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
