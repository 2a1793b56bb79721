"""K-quants with minima: 256 weights in groups of 16 or 32, each with an integer scale and minimum.

weight = d * scale of its group * level - dmin * minimum of its group, with d and dmin float16 for
the whole block. `nest_affine` chooses all of them. Layouts as in ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from ivl.quant.block_format import BlockFormat, Bytes, Floats, float16_at, float16_bytes
from ivl.quant.kquants import BLOCK, join_planes, split_planes
from ivl.quant.search import fit_affine, nest_affine


class _NestedAffine(BlockFormat):
    """What the formats have in common: decoding from their parts, and quantizing."""

    block_size = BLOCK
    groups: ClassVar[int]
    high: ClassVar[int]
    scales_high: ClassVar[int]
    cuts: ClassVar[tuple[tuple[float, float], ...]]
    starts: ClassVar[tuple[tuple[float, float], ...]]
    rounds: ClassVar[int]

    def _decode(self, blocks: Bytes) -> Floats:
        d, dmin, scales, minima, levels = self._unpack(blocks)
        step, offset = d * scales.astype(np.float32), dmin * minima.astype(np.float32)
        grouped = levels.reshape(len(blocks), self.groups, -1).astype(np.float32)
        weights = step[:, :, None] * grouped - offset[:, :, None]
        return weights.reshape(-1, BLOCK)

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        shape = (len(weights), self.groups, BLOCK // self.groups)
        groups, shares = weights.reshape(shape), importance.reshape(shape)
        scales, offsets = fit_affine(groups, shares, self.high, self.cuts, signed=False)
        factors, integers, levels = nest_affine(
            groups, shares, scales, -offsets, self.high, self.scales_high, self.starts, self.rounds
        )
        whole = integers.astype(np.uint8)
        levels = levels.reshape(-1, BLOCK).astype(np.uint8)
        return self._pack(factors, whole[..., 0], whole[..., 1], levels)

    @abstractmethod
    def _unpack(self, blocks: Bytes) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
        """d and dmin (n, 1), scales and minima (n, groups), levels of all weights in order."""

    @abstractmethod
    def _pack(self, factors: Floats, scales: Bytes, minima: Bytes, levels: Bytes) -> Bytes: ...


def _unpack_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and minima (n, 8) of 6 bits from the 12 bytes that the docstring of Q4_K describes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (rest & 0x0F) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([second & 63, (rest >> 4) | ((second >> 6) << 4)], axis=-1)
    return scales, minima


def _pack_pairs(scales: Bytes, minima: Bytes) -> Bytes:
    parts = [
        scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
        minima[:, :4] | ((minima[:, 4:] >> 4) << 6),
        (scales[:, 4:] & 0x0F) | (minima[:, 4:] << 4),
    ]
    return np.concatenate(parts, axis=-1)


class Q2_K(_NestedAffine):
    """2 bits: weight i = d * s[i / 16] * q[i] - dmin * m[i / 16], q of 0 to 3, s and m of 0 to 15.

    0-15   byte g, for g of 0 to 15: s[g] in bits 0-3, m[g] in bits 4-7
    16-79  two planes of 32 bytes, of weights 0-127 and 128-255; of byte k of plane p the bits
           2 * b and 2 * b + 1, for b of 0 to 3: q[128 * p + 32 * b + k]
    80-81  d, float16
    82-83  dmin, float16
    """

    name = "Q2_K"
    type_id = 10
    block_bytes = 84
    groups = 16
    high = 3
    scales_high = 15
    cuts = tuple((a, b) for a in (-0.05, 0.05, 0.12, 0.2) for b in (-0.05, 0.05, 0.12, 0.2))
    starts = tuple((a, b) for a in (15.0, 14.0, 13.0) for b in (15.0, 14.0, 13.0))
    rounds = 4

    def _unpack(self, blocks: Bytes) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
        levels = split_planes(blocks[:, 16:80].reshape(-1, 32), 2).reshape(-1, BLOCK)
        pairs = blocks[:, :16]
        return float16_at(blocks, 80), float16_at(blocks, 82), pairs & 0x0F, pairs >> 4, levels

    def _pack(self, factors: Floats, scales: Bytes, minima: Bytes, levels: Bytes) -> Bytes:
        parts = [
            scales | (minima << 4),
            join_planes(levels.reshape(-1, 4, 32), 2).reshape(-1, 64),
            float16_bytes(factors[:, 0]),
            float16_bytes(factors[:, 1]),
        ]
        return np.concatenate(parts, axis=-1)


class Q4_K(_NestedAffine):
    """4 bits: weight i = d * s[i / 32] * q[i] - dmin * m[i / 32], q of 0 to 15, s and m of 0 to 63.

    0-1     d, float16
    2-3     dmin, float16
    4-15    byte 4 + k, for k of 0 to 3: s[k] in bits 0-5, bits 4-5 of s[k + 4] in bits 6-7
            byte 8 + k: m[k] in bits 0-5, bits 4-5 of m[k + 4] in bits 6-7
            byte 12 + k: bits 0-3 of s[k + 4] in bits 0-3, bits 0-3 of m[k + 4] in bits 4-7
    16-143  four planes of 32 bytes, of 64 weights each; byte k of plane p: q[64 * p + k] in
            bits 0-3, q[64 * p + 32 + k] in bits 4-7
    """

    name = "Q4_K"
    type_id = 12
    block_bytes = 144
    groups = 8
    high = 15
    scales_high = 63
    cuts = tuple((a, b) for a in (-0.02, 0.0, 0.03, 0.07) for b in (-0.02, 0.0, 0.03, 0.07))
    starts = ((63.0, 63.0), (61.0, 61.0))
    rounds = 2

    def _unpack(self, blocks: Bytes) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
        levels = split_planes(blocks[:, 16:].reshape(-1, 32), 4).reshape(-1, BLOCK)
        return float16_at(blocks, 0), float16_at(blocks, 2), *_unpack_pairs(blocks[:, 4:16]), levels

    def _pack(self, factors: Floats, scales: Bytes, minima: Bytes, levels: Bytes) -> Bytes:
        parts = [
            float16_bytes(factors[:, 0]),
            float16_bytes(factors[:, 1]),
            _pack_pairs(scales, minima),
            join_planes(levels.reshape(-1, 2, 32), 4).reshape(-1, 128),
        ]
        return np.concatenate(parts, axis=-1)


class Q5_K(_NestedAffine):
    """5 bits: weight i = d * s[i / 32] * q[i] - dmin * m[i / 32], q of 0 to 31, s and m of 0 to 63.

    0-1     d, float16
    2-3     dmin, float16
    4-15    s and m, as in Q4_K
    16-47   bit b of byte k, for b of 0 to 7: bit 4 of q[32 * b + k]
    48-175  four planes of 32 bytes, of 64 weights each; byte k of plane p: bits 0-3 of
            q[64 * p + k] in bits 0-3, of q[64 * p + 32 + k] in bits 4-7
    """

    name = "Q5_K"
    type_id = 13
    block_bytes = 176
    groups = 8
    high = 31
    scales_high = 63
    cuts = tuple((a, b) for a in (-0.01, 0.0, 0.015, 0.03) for b in (-0.01, 0.0, 0.015, 0.03))
    starts = ((63.0, 63.0), (61.0, 61.0))
    rounds = 2

    def _unpack(self, blocks: Bytes) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
        low = split_planes(blocks[:, 48:].reshape(-1, 32), 4).reshape(-1, BLOCK)
        top = split_planes(blocks[:, 16:48], 1).reshape(-1, BLOCK)
        levels = low | (top << 4)
        return float16_at(blocks, 0), float16_at(blocks, 2), *_unpack_pairs(blocks[:, 4:16]), levels

    def _pack(self, factors: Floats, scales: Bytes, minima: Bytes, levels: Bytes) -> Bytes:
        parts = [
            float16_bytes(factors[:, 0]),
            float16_bytes(factors[:, 1]),
            _pack_pairs(scales, minima),
            join_planes((levels >> 4).reshape(-1, 8, 32), 1),
            join_planes(levels.reshape(-1, 2, 32), 4).reshape(-1, 128),
        ]
        return np.concatenate(parts, axis=-1)
