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

Arithmetic = Literal["int8", "float16", "bfloat16"]


def arithmetics() -> tuple[Arithmetic, ...]:
    """What the instruction set in use offers; nothing without the extension."""
    module = cpu.extension()
    if module is None:
        return ()
    found: list[Arithmetic] = ["int8"]
    if module.has_float16_products():
        found.append("float16")
    if module.has_bfloat16_products():
        found.append("bfloat16")
    return tuple(found)


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
    """Activations (rows, width), normed and rounded to a product's type, with a scale for each row.

    The memory is kept from `fill` to `fill`.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic: Arithmetic = arithmetic
        self.held = _extension().DenseRows(arithmetic)

    def fill(self, x: Tensor, norm: Norm | None = None) -> Rows:
        """x float32 (rows, width), contiguous."""
        if norm is None:
            self.held.fill(x, "none", None, None, 0.0)
        else:
            self.held.fill(x, norm.kind, norm.weight, norm.bias, norm.eps)
        return self


class DenseMatrix:
    """A weight (outputs, inputs) in panels, with its bias."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, arithmetic: Arithmetic, *more: Tensor
    ) -> None:
        """The weight and the bias, of any float type, are copied.

        more: further rows of the weight, such as those of keys and values below the queries'.
        int8: the largest magnitude of each output's row becomes 127. float16: rows with magnitudes
        that sums of that type have no room for are scaled down. bfloat16: nothing is scaled.
        """
        panels, parts = _extension().DensePanels, (weight, *more)
        if any(len(part) % panels.part_outputs for part in parts[:-1]):
            parts = (torch.cat(parts),)
        self.outputs = sum(map(len, parts))
        given = [part.detach().contiguous() for part in parts]
        self._panels = panels(
            arithmetic, given, None if bias is None else bias.detach().float().contiguous()
        )

    @property
    def num_bytes(self) -> int:
        return self._panels.num_bytes

    def multiply(self, rows: Rows, out: Tensor, *, gelu: bool = False) -> Tensor:
        """out (rows, outputs) float32 = rows W^T + bias, then GELU (erf) if it is asked for."""
        self._panels.multiply(rows.held, out, gelu)
        return out

    def add_scaled(self, rows: Rows, out: Tensor, channel_scales: Tensor) -> Tensor:
        """out (rows, outputs) float32 += channel_scales * (rows W^T + bias)."""
        self._panels.add_scaled(rows.held, channel_scales, out)
        return out


_ATTENTION: tuple[Arithmetic, ...] = ("float16", "bfloat16")
"""What attention is computed in where the products are of int8; the first is more exact."""


def tile_attention(qkv: Tensor, num_heads: int, out: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Attention of every position of a tile to every other, from float32 to float32.

    qkv (tiles, positions, 3 * width) -> out (tiles, positions, width). By products of the
    arithmetic, or of 16 bits where that is int8, if the processor has them and heads are whole
    panels; otherwise by torch.
    """
    tiles, positions, width = out.shape
    module = cpu.extension()
    wanted = _ATTENTION if arithmetic == "int8" else (arithmetic,)
    usable = [one for one in wanted if one in arithmetics()]
    if module is not None and usable and width // num_heads % module.DensePanels.part_outputs == 0:
        module.tile_attention(usable[0], qkv, num_heads, out)
        return out
    q, k, v = qkv.view(tiles, positions, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v)
    out.view(tiles, positions, num_heads, -1).copy_(heads.transpose(1, 2))
    return out
