"""AWQ: 4 bits with one scale and one integer zero point for each 128 weights of a row.

This is how the weights of an AWQ checkpoint lie in memory. On disk they lie by columns, eight
outputs to a 32-bit word; `ivl.checkpoint.awq` turns the one into the other, without loss.
GGUF files have no such format.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ivl.quant.block_format import (
    BlockFormat,
    Bytes,
    Floats,
    float16_at,
    float16_bytes,
    join_nibbles,
    split_nibbles,
    to_float16,
)
from ivl.quant.search import divide, round_to_levels

GROUP_SIZE = 128
"""Weights that share a scale and a zero point: neighbours in a row, that is, of one output."""

HIGHEST_LEVEL = 15

_HALF = GROUP_SIZE // 2
_HEADER_BYTES = 4

# How much of the range from the least to the greatest weight is kept: what quantizing tries.
_SHRINKS = tuple(np.linspace(1.0, 0.7, 13).astype(np.float32))


class AWQ(BlockFormat):
    """4 bits, zero point: weight j = d * (q[j] - z), q of 0 to 15, in float32.

    0-1   d, float16
    2     z, uint8, 0 to 15
    3     0
    4-67  byte 4 + j, for j of 0 to 63: q[j] in bits 0-3, q[j + 64] in bits 4-7

    A row of n weights is n / 128 such blocks, one after the other.
    """

    name = "AWQ"
    type_id = -1  # GGUF has no number for it
    block_size = GROUP_SIZE
    block_bytes = _HEADER_BYTES + _HALF

    def _decode(self, blocks: Bytes) -> Floats:
        levels = split_nibbles(blocks[:, _HEADER_BYTES:]).astype(np.float32)
        return float16_at(blocks, 0) * (levels - blocks[:, 2:3].astype(np.float32))

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        best = np.ones(len(weights), np.float32)
        least = np.full(len(weights), np.inf, np.float32)
        for shrink in _SHRINKS:
            stored = fit(weights, shrink).dequantize()
            error = (importance * (weights - stored) ** 2).sum(axis=-1)
            best = np.where(error < least, shrink, best)
            least = np.minimum(error, least)
        return join_groups(fit(weights, best))


class Groups(NamedTuple):
    """Quantized groups of 128 weights, in parts; `...` are any leading dimensions."""

    levels: Bytes
    """uint8 (..., 128), 0 to 15."""
    scales: Floats
    """(...), values that float16 can hold."""
    zeros: Bytes
    """uint8 (...), 0 to 15."""

    def dequantize(self) -> Floats:
        """The weights that the groups stand for, float32 (..., 128)."""
        offsets = self.levels.astype(np.float32) - self.zeros[..., None].astype(np.float32)
        return self.scales[..., None] * offsets


def fit(weights: Floats, shrink: Floats | np.float32) -> Groups:
    """Rounds each group of weights (..., 128) to nearest, zero within its range.

    The 16 levels span `shrink` (one number, or one a group) of the range from the least to the
    greatest weight; what lies outside is clipped. Zero itself is always a level.
    """
    low = np.minimum(weights.min(axis=-1), 0) * shrink
    high = np.maximum(weights.max(axis=-1), 0) * shrink
    scales = to_float16((high - low) / np.float32(HIGHEST_LEVEL))
    # A group of zeros, or of numbers too small for float16: any scale will do, none gives NaN.
    scales = np.where(scales > 0, scales, np.float32(1))
    zeros = round_to_levels(divide(-low, scales), 0, HIGHEST_LEVEL)
    levels = round_to_levels(weights / scales[..., None] + zeros[..., None], 0, HIGHEST_LEVEL)
    return Groups(levels.astype(np.uint8), scales, zeros.astype(np.uint8))


def join_groups(groups: Groups) -> Bytes:
    """Blocks uint8 (..., 68) of the `AWQ` format, of groups that already have their scales."""
    levels, scales, zeros = groups
    blocks = np.zeros((*levels.shape[:-1], _HEADER_BYTES + _HALF), np.uint8)
    blocks[..., :2] = float16_bytes(scales.reshape(-1)).reshape(*scales.shape, 2)
    blocks[..., 2] = zeros
    blocks[..., _HEADER_BYTES:] = join_nibbles(levels)
    return blocks


def split_groups(blocks: Bytes) -> Groups:
    """The parts of blocks uint8 (..., 68)."""
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    return Groups(split_nibbles(blocks[..., _HEADER_BYTES:]), scales, blocks[..., 2])
