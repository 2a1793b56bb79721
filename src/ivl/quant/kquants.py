"""K-quants without minima: 256 weights in 16 groups of 16, each with an integer scale.

weight = d * scale of its group * level, with d a float16 for the whole block. `nest_scales` chooses
all three. Layouts as in ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from ivl.quant.block_format import BlockFormat, Bytes, Floats, float16_at, float16_bytes
from ivl.quant.search import fit_scale, nest_scales

BLOCK = 256


def split_planes(packed: Bytes, bits: int) -> Bytes:
    """Levels (n, planes, 32) below 2**bits from bytes (n, 32): plane p is at bit p * bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[:, None, :] >> shifts) & np.uint8((1 << bits) - 1)


def join_planes(levels: Bytes, bits: int) -> Bytes:
    """Bytes (n, 32) of levels (n, 8 / bits, 32), as `split_planes` reads them."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce((levels & np.uint8((1 << bits) - 1)) << shifts, axis=1)


class _Nested(BlockFormat):
    """16 groups of 16; what the two formats have in common is how they are quantized."""

    block_size = BLOCK
    levels_range: ClassVar[tuple[int, int]]
    scales_range: ClassVar[tuple[int, int]]
    targets: ClassVar[tuple[float, ...]]
    starts: ClassVar[tuple[float, ...]]
    rounds: ClassVar[int]

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        groups, shares = weights.reshape(-1, 16, 16), importance.reshape(-1, 16, 16)
        scales = fit_scale(groups, shares, *self.levels_range, self.targets)
        factor, integers, levels = nest_scales(
            groups, shares, scales, self.levels_range, self.scales_range, self.starts, self.rounds
        )
        return self._pack(factor, integers.astype(np.int8), levels.reshape(-1, BLOCK))

    @abstractmethod
    def _pack(self, factor: Floats, scales: np.ndarray, levels: Floats) -> Bytes: ...


class Q3_K(_Nested):
    """3 bits: weight i = d * (s[i / 16] - 32) * (q[i] - 4), q of 0 to 7, s of 0 to 63.

    0-31     bit b of byte k, for b of 0 to 7: bit 2 of q[32 * b + k]
    32-95    two planes of 32 bytes, of weights 0-127 and 128-255; of byte k of plane p the bits
             2 * b and 2 * b + 1, for b of 0 to 3: bits 0-1 of q[128 * p + 32 * b + k]
    96-107   scales: byte 96 + k, for k of 0 to 7: bits 0-3 of s[k] in bits 0-3, of s[k + 8] in
             bits 4-7; byte 104 + k, for k of 0 to 3: bits 4-5 of s[k] in bits 0-1, of s[k + 4] in
             bits 2-3, of s[k + 8] in bits 4-5, of s[k + 12] in bits 6-7
    108-109  d, float16
    """

    name = "Q3_K"
    type_id = 11
    block_bytes = 110
    levels_range = (-4, 3)
    scales_range = (-32, 31)
    targets = tuple(
        sign * float(level)
        for sign, first in ((-1, 6.0), (1, 5.0))
        for level in np.arange(first, 2.1, -0.2)
    )
    starts = (-32.0, -30.0, -28.5, 31.0)
    rounds = 3

    def _decode(self, blocks: Bytes) -> Floats:
        top = split_planes(blocks[:, :32], 1).reshape(-1, BLOCK)
        low = split_planes(blocks[:, 32:96].reshape(-1, 32), 2).reshape(-1, BLOCK)
        levels = (low | (top << 2)).astype(np.int8) - np.int8(4)
        scales = self._unpack_scales(blocks[:, 96:108]).astype(np.int8) - np.int8(32)
        step = float16_at(blocks, 108) * scales.astype(np.float32)
        weights = step[:, :, None] * levels.astype(np.float32).reshape(-1, 16, 16)
        return weights.reshape(-1, BLOCK)

    def _unpack_scales(self, packed: Bytes) -> Bytes:
        low = np.concatenate([packed[:, :8] & 0x0F, packed[:, :8] >> 4], axis=-1)
        top = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
        return low | (top << 4)

    def _pack(self, factor: Floats, scales: np.ndarray, levels: Floats) -> Bytes:
        q = (levels + 4).astype(np.uint8)
        s = (scales + 32).astype(np.uint8)
        top = s >> 4
        joined = [top[:, 4 * k : 4 * k + 4] << (2 * k) for k in range(4)]
        parts = [
            join_planes((q >> 2).reshape(-1, 8, 32), 1),
            join_planes(q.reshape(-1, 4, 32), 2).reshape(-1, 64),
            (s[:, :8] & 0x0F) | (s[:, 8:] << 4),
            joined[0] | joined[1] | joined[2] | joined[3],
            float16_bytes(factor),
        ]
        return np.concatenate(parts, axis=-1)


class Q6_K(_Nested):
    """6 bits: weight i = d * s[i / 16] * (q[i] - 32), q of 0 to 63.

    Weights 0-127 are the first half h = 0 of each plane, weights 128-255 the second, h = 1.

    0-127    64 bytes for each h; byte k, for k of 0 to 63: bits 0-3 of q[128 * h + k] in bits 0-3,
             of q[128 * h + 64 + k] in bits 4-7
    128-191  32 bytes for each h; of byte k the bits 2 * b and 2 * b + 1, for b of 0 to 3:
             bits 4-5 of q[128 * h + 32 * b + k]
    192-207  s[0] to s[15], int8
    208-209  d, float16
    """

    name = "Q6_K"
    type_id = 14
    block_bytes = 210
    levels_range = (-32, 31)
    scales_range = (-128, 127)
    targets = tuple(
        sign * float(level)
        for sign, first in ((-1, 33.0), (1, 32.0))
        for level in np.arange(first, 26.9, -0.5)
    )
    starts = (-128.0, -125.0, 127.0)
    rounds = 2

    def _decode(self, blocks: Bytes) -> Floats:
        low = blocks[:, :128].reshape(-1, 1, 64)
        low = np.concatenate([low & 0x0F, low >> 4], axis=1).reshape(-1, BLOCK)
        top = split_planes(blocks[:, 128:192].reshape(-1, 32), 2).reshape(-1, BLOCK)
        levels = (low | (top << 4)).astype(np.int8) - np.int8(32)
        scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
        step = float16_at(blocks, 208) * scales
        weights = step[:, :, None] * levels.astype(np.float32).reshape(-1, 16, 16)
        return weights.reshape(-1, BLOCK)

    def _pack(self, factor: Floats, scales: np.ndarray, levels: Floats) -> Bytes:
        q = (levels + 32).astype(np.uint8)
        halves = q.reshape(-1, 2, 64)
        parts = [
            ((halves[:, 0] & 0x0F) | (halves[:, 1] << 4)).reshape(-1, 128),
            join_planes((q >> 4).reshape(-1, 4, 32), 2).reshape(-1, 64),
            scales.view(np.uint8),
            float16_bytes(factor),
        ]
        return np.concatenate(parts, axis=-1)
