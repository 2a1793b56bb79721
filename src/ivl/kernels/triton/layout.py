"""How quantized matrices lie in a GPU's memory, and how blocks of a file get there.

A row is cut into strips of 128 columns, the last one filled up with weights of scale zero, and a
strip into 8 tiles of 16. Everything that belongs to one tile number lies together for all strips of
a row, so that neighbouring threads read neighbouring bytes, 16 at once:

    low      uint8 (rows, low_bits, strips, 16). Byte j of chunk c holds 8 / low_bits tiles: bits
             low_bits * p and up, for p from 0, are the low bits of column j of tile
             c * 8 / low_bits + p
    top      the same with top_bits: the bits of a level above its low ones
    scales   (rows, 128 / group, strips): one for each group of `group` columns; int8 where a block
             has a scale of its own (`nested`), else float16
    offsets  of the same shape: minima (int8 if nested, else float16) or zero points (int8)
    d, dmin  float16 (rows, columns / 256): what the scales and the minima of a block are times;
             only if nested

A level is low | top << low_bits, and in the formats with a table the number in that place of it.
The weight is

    "zero"    scale * (level - zero)
    "points"  scale * (level - offset)
    "minima"  scale * level - offset    (nested: the offset is stored; else its negative)
    "paired"  the same, with the scale in bits 0-3 and the offset in bits 4-7 of `scales`

with scale = d * scale and offset = dmin * offset if nested. These are the steps of the references
in `ivl.quant`, in float32, so the weights are the same bit for bit. Beside the blocks of a file,
6-bit scales grow to 8 bits: Q4_K takes 148 bytes for 256 weights in the place of 144.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ivl.kernels.mapped import to_device
from ivl.quant.formats import LEVELS, find_format

STRIP = 128
TILE = 16
TILES = STRIP // TILE
NESTED_BLOCK = 256

Offset = Literal["zero", "points", "minima", "paired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Of one block format; see above."""

    low_bits: int
    top_bits: int = 0
    group: int
    nested: bool = False
    offset: Offset = "zero"
    zero: int = 0
    table: tuple[int, ...] | None = None
    fields: Callable[[Tensor], _Fields]
    """Takes blocks of a file uint8 (n, block_bytes) apart."""

    @property
    def groups_per_strip(self) -> int:
        return STRIP // self.group


def num_strips(columns: int) -> int:
    return -(-columns // STRIP)


WEIGHTS_AT_ONCE = 1 << 25
"""What is unpacked beside the matrix, a byte or two each: it bounds the memory of loading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """A matrix in this layout; None: has no such part."""

    low: Tensor
    top: Tensor | None
    scales: Tensor
    offsets: Tensor | None
    d: Tensor | None
    dmin: Tensor | None

    def tensors(self) -> list[Tensor]:
        parts = (self.low, self.top, self.scales, self.offsets, self.d, self.dmin)
        return [part for part in parts if part is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields:
    """What n blocks hold, unpacked: levels uint8 (n, block_size); scales and offsets, int8 or
    float16 (n, groups); d and dmin float16 (n, 1)."""

    levels: Tensor
    scales: Tensor
    offsets: Tensor | None = None
    d: Tensor | None = None
    dmin: Tensor | None = None


def repack(blocks: np.ndarray, format: str, device: torch.device | str) -> Planes:
    """blocks: uint8 (rows, row_bytes), read-only or not. Some rows at a time go to the device and
    are rearranged there."""
    found, layout, target = find_format(format), LAYOUTS[format], torch.device(device)
    rows, columns = len(blocks), blocks.shape[1] // found.block_bytes * found.block_size
    planes = _empty(layout, rows, columns, target)
    at_once = max(1, WEIGHTS_AT_ONCE // max(1, columns))
    for start in range(0, rows, at_once):
        part = to_device(blocks[start : start + at_once], target)
        fields = layout.fields(part.reshape(-1, found.block_bytes))
        _store(planes, slice(start, start + len(part)), len(part), fields, layout)
    return planes


def _empty(layout: Layout, rows: int, columns: int, device: torch.device) -> Planes:
    strips = num_strips(columns)

    def memory(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros((rows, *shape), dtype=dtype, device=device)

    small = torch.int8 if layout.nested else torch.float16
    grouped = (layout.groups_per_strip, strips)
    blocks = columns // NESTED_BLOCK
    offsets = None
    if layout.offset in ("points", "minima"):
        dtype = torch.int8 if layout.offset == "points" else small
        offsets = memory(*grouped, dtype=dtype)
    has_dmin = layout.nested and layout.offset in ("minima", "paired")
    return Planes(
        low=memory(layout.low_bits, strips, TILE, dtype=torch.uint8),
        top=memory(layout.top_bits, strips, TILE, dtype=torch.uint8) if layout.top_bits else None,
        scales=memory(*grouped, dtype=small),
        offsets=offsets,
        d=memory(blocks, dtype=torch.float16) if layout.nested else None,
        dmin=memory(blocks, dtype=torch.float16) if has_dmin else None,
    )


def _store(planes: Planes, where: slice, rows: int, fields: _Fields, layout: Layout) -> None:
    """Puts the fields of all blocks of some rows in their places."""
    levels = _padded(fields.levels.reshape(rows, -1), STRIP)
    planes.low[where] = _bit_planes(levels, 0, layout.low_bits)
    if planes.top is not None:
        planes.top[where] = _bit_planes(levels, layout.low_bits, layout.top_bits)
    per_strip = layout.groups_per_strip
    for kept, found in ((planes.scales, fields.scales), (planes.offsets, fields.offsets)):
        if kept is not None and found is not None:
            grouped = _padded(found.reshape(rows, -1), per_strip)
            kept[where] = grouped.reshape(rows, -1, per_strip).transpose(1, 2)
    for kept, found in ((planes.d, fields.d), (planes.dmin, fields.dmin)):
        if kept is not None and found is not None:
            kept[where] = found.reshape(rows, -1)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """(rows, n) with zeros behind, up to a multiple."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % multiple))


def _bit_planes(levels: Tensor, first_bit: int, bits: int) -> Tensor:
    """levels uint8 (rows, columns) -> (rows, bits, strips, 16) of their bits from `first_bit`."""
    per_byte = 8 // bits
    tiles = levels.reshape(len(levels), -1, TILES // per_byte, per_byte, TILE)
    whole = torch.zeros_like(tiles[:, :, :, 0])
    for p in range(per_byte):
        whole |= ((tiles[:, :, :, p] >> first_bit) & ((1 << bits) - 1)) << (bits * p)
    return whole.transpose(1, 2)


def _halves(blocks: Tensor, start: int) -> Tensor:
    """The float16 numbers at byte `start` of each block, (n, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16)


def _spread(packed: Tensor, bits: int) -> Tensor:
    """(n, planes, width) bytes -> (n, planes * 8 / bits * width) levels: of each plane the lowest
    bits of all bytes come first."""
    shifted = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(shifted, dim=2).flatten(1)


def _plain(blocks: Tensor, *, has_top: bool = False, has_minimum: bool = False) -> _Fields:
    """Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL: float16 scale, maybe minimum, maybe 32 bits, 16 bytes."""
    start = 4 if has_minimum else 2
    levels = _spread(blocks[:, None, -16:], 4)
    if has_top:
        bits = torch.arange(8, dtype=torch.uint8, device=blocks.device)
        top = (blocks[:, start : start + 4, None] >> bits) & 1
        levels = levels | (top.flatten(1) << 4)
    offsets = -_halves(blocks, 2) if has_minimum else None
    return _Fields(levels=levels, scales=_halves(blocks, 0), offsets=offsets)


def _q8_0(blocks: Tensor) -> _Fields:
    # A signed byte plus 128 is the same byte with its highest bit turned.
    return _Fields(levels=blocks[:, 2:] ^ 128, scales=_halves(blocks, 0))


def _q2_k(blocks: Tensor) -> _Fields:
    return _Fields(
        levels=_spread(blocks[:, 16:80].reshape(-1, 2, 32), 2),
        scales=blocks[:, :16].contiguous().view(torch.int8),
        d=_halves(blocks, 80),
        dmin=_halves(blocks, 82),
    )


def _q3_k(blocks: Tensor) -> _Fields:
    low = _spread(blocks[:, 32:96].reshape(-1, 2, 32), 2)
    top = _spread(blocks[:, None, :32], 1)
    first, rest = blocks[:, 96:104], blocks[:, 104:108]
    scales = torch.cat([first & 15, first >> 4], dim=1) | (_spread(rest[:, None], 2) << 4)
    return _Fields(
        levels=low | (top << 2), scales=scales.view(torch.int8) - 32, d=_halves(blocks, 108)
    )


def _affine_k(blocks: Tensor, *, has_top: bool = False) -> _Fields:
    """Q4_K and Q5_K."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (rest >> 4) | ((second >> 6) << 4)], dim=1)
    levels = _spread(blocks[:, -128:].reshape(-1, 4, 32), 4)
    if has_top:
        levels = levels | (_spread(blocks[:, None, 16:48], 1) << 4)
    return _Fields(
        levels=levels,
        scales=scales.view(torch.int8),
        offsets=minima.view(torch.int8),
        d=_halves(blocks, 0),
        dmin=_halves(blocks, 2),
    )


def _q6_k(blocks: Tensor) -> _Fields:
    low = _spread(blocks[:, :128].reshape(-1, 2, 64), 4)
    top = _spread(blocks[:, 128:192].reshape(-1, 2, 32), 2)
    scales = blocks[:, 192:208].contiguous().view(torch.int8)
    return _Fields(levels=low | (top << 4), scales=scales, d=_halves(blocks, 208))


def _iq4_xs(blocks: Tensor) -> _Fields:
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], dim=2).flatten(1)
    bits = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    top = ((blocks[:, 2:4, None] >> bits) & 3).flatten(1)
    return _Fields(
        levels=_spread(blocks[:, 8:].reshape(-1, 8, 16), 4),
        scales=(low | (top << 4)).view(torch.int8) - 32,
        d=_halves(blocks, 0),
    )


def _awq(blocks: Tensor) -> _Fields:
    return _Fields(
        levels=_spread(blocks[:, None, 4:], 4),
        scales=_halves(blocks, 0),
        offsets=blocks[:, 2:3].contiguous().view(torch.int8),
    )


_TABLE = tuple(int(level) for level in LEVELS)
_q4_1 = partial(_plain, has_minimum=True)
_q5_0 = partial(_plain, has_top=True)
_q5_1 = partial(_plain, has_top=True, has_minimum=True)
_q5_k = partial(_affine_k, has_top=True)

LAYOUTS: dict[str, Layout] = {
    "Q8_0": Layout(fields=_q8_0, low_bits=8, group=32, zero=128),
    "Q4_0": Layout(fields=_plain, low_bits=4, group=32, zero=8),
    "Q4_1": Layout(fields=_q4_1, low_bits=4, group=32, offset="minima"),
    "Q5_0": Layout(fields=_q5_0, low_bits=4, top_bits=1, group=32, zero=16),
    "Q5_1": Layout(fields=_q5_1, low_bits=4, top_bits=1, group=32, offset="minima"),
    "Q2_K": Layout(fields=_q2_k, low_bits=2, group=16, nested=True, offset="paired"),
    "Q3_K": Layout(fields=_q3_k, low_bits=2, top_bits=1, group=16, nested=True, zero=4),
    "Q4_K": Layout(fields=_affine_k, low_bits=4, group=32, nested=True, offset="minima"),
    "Q5_K": Layout(fields=_q5_k, low_bits=4, top_bits=1, group=32, nested=True, offset="minima"),
    "Q6_K": Layout(fields=_q6_k, low_bits=4, top_bits=2, group=16, nested=True, zero=32),
    "IQ4_NL": Layout(fields=_plain, low_bits=4, group=32, table=_TABLE),
    "IQ4_XS": Layout(fields=_iq4_xs, low_bits=4, group=32, nested=True, table=_TABLE),
    "AWQ": Layout(fields=_awq, low_bits=4, group=128, offset="points"),
}
"""By the format's name. Formats of 16 and 32 bits are not quantized and have none."""
