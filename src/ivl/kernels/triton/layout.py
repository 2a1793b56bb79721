"""How quantized matrices lie in a GPU's memory.

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

from dataclasses import dataclass
from typing import Literal

from ivl.quant.formats import LEVELS

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

    @property
    def groups_per_strip(self) -> int:
        return STRIP // self.group


_TABLE = tuple(int(level) for level in LEVELS)

LAYOUTS: dict[str, Layout] = {
    "Q8_0": Layout(low_bits=8, group=32, zero=128),
    "Q4_0": Layout(low_bits=4, group=32, zero=8),
    "Q4_1": Layout(low_bits=4, group=32, offset="minima"),
    "Q5_0": Layout(low_bits=4, top_bits=1, group=32, zero=16),
    "Q5_1": Layout(low_bits=4, top_bits=1, group=32, offset="minima"),
    "Q2_K": Layout(low_bits=2, group=16, nested=True, offset="paired"),
    "Q3_K": Layout(low_bits=2, top_bits=1, group=16, nested=True, zero=4),
    "Q4_K": Layout(low_bits=4, group=32, nested=True, offset="minima"),
    "Q5_K": Layout(low_bits=4, top_bits=1, group=32, nested=True, offset="minima"),
    "Q6_K": Layout(low_bits=4, top_bits=2, group=16, nested=True, zero=32),
    "IQ4_NL": Layout(low_bits=4, group=32, table=_TABLE),
    "IQ4_XS": Layout(low_bits=4, group=32, nested=True, table=_TABLE),
    "AWQ": Layout(low_bits=4, group=128, offset="points"),
}
"""By the format's name. Formats of 16 and 32 bits are not quantized and have none."""


def num_strips(columns: int) -> int:
    return -(-columns // STRIP)
