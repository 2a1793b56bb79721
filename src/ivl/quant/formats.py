"""The block formats of GGUF files, and all formats by name and by the number that they have there.

Floats are blocks of one weight. The plain formats have 32 weights with one float16 scale, and in
Q4_1 and Q5_1 one minimum. K-quants have 256 weights in groups of 16 or 32, each with a small
integer scale (and in Q2_K, Q4_K and Q5_K a minimum), and a float16 for those. IQ4 formats have
their levels in a table, not evenly spaced: they are read here, never written.

Layouts as in ggml-common.h of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from ivl.errors import UnsupportedError
from ivl.quant.awq import AWQ
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
from ivl.quant.search import (
    divide,
    fit_affine,
    fit_scale,
    nest_affine,
    nest_scales,
    round_to_levels,
)


class F32(BlockFormat):
    """IEEE binary32.

    0-3  the weight
    """

    name = "F32"
    type_id = 0
    block_size = 1
    block_bytes = 4
    limit = np.inf

    def _decode(self, blocks: Bytes) -> Floats:
        return blocks.view("<f4")

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        return weights.astype("<f4").view(np.uint8)


class F16(BlockFormat):
    """IEEE binary16, rounded to nearest, ties to even.

    0-1  the weight
    """

    name = "F16"
    type_id = 1
    block_size = 1
    block_bytes = 2

    def _decode(self, blocks: Bytes) -> Floats:
        return blocks.view("<f2").astype(np.float32)

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        return weights.astype("<f2").view(np.uint8)


class BF16(BlockFormat):
    """The upper half of IEEE binary32, rounded to nearest, ties to even.

    0-1  bits 16 to 31 of the weight as binary32
    """

    name = "BF16"
    type_id = 30
    block_size = 1
    block_bytes = 2
    limit = np.inf

    def _decode(self, blocks: Bytes) -> Floats:
        return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        bits = weights.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype("<u2").view(np.uint8)


def split_bits(packed: Bytes) -> Bytes:
    """Zeros and ones (n, 32) of bytes (n, 4): bit j of the 32-bit word belongs to weight j."""
    return np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")


def join_bits(bits: Bytes) -> Bytes:
    """Bytes (n, 4) of zeros and ones (n, 32)."""
    return np.packbits(bits, axis=-1, bitorder="little")


class _Symmetric(BlockFormat):
    """weight = scale * level, level in [low, high]."""

    block_size = 32
    low: ClassVar[int]
    high: ClassVar[int]
    targets: ClassVar[tuple[float, ...]]

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        scale = fit_scale(weights[:, None], importance[:, None], self.low, self.high, self.targets)
        scale = to_float16(scale[:, 0])
        inverse = divide(np.float32(1), scale)[:, None]
        levels = round_to_levels(weights * inverse, self.low, self.high)
        return np.concatenate([float16_bytes(scale), self._pack(levels)], axis=-1)

    @abstractmethod
    def _pack(self, levels: Floats) -> Bytes: ...


class _Affine(BlockFormat):
    """weight = scale * level + minimum, level in [0, high]."""

    block_size = 32
    high: ClassVar[int]
    cuts: ClassVar[tuple[tuple[float, float], ...]]

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        scale, offset = fit_affine(
            weights[:, None], importance[:, None], self.high, self.cuts, signed=True
        )
        scale, offset = to_float16(scale[:, 0]), to_float16(offset[:, 0])
        inverse = divide(np.float32(1), scale)[:, None]
        levels = round_to_levels((weights - offset[:, None]) * inverse, 0, self.high)
        packed = self._pack(levels.astype(np.uint8))
        return np.concatenate([float16_bytes(scale), float16_bytes(offset), packed], axis=-1)

    @abstractmethod
    def _pack(self, levels: Bytes) -> Bytes: ...


def _both_signs(start: float, stop: float, steps: int) -> tuple[float, ...]:
    """Targets for a range with one level more below zero than above: both signs."""
    spread = np.linspace(start, stop, steps).astype(np.float32)
    return (*(-spread), *(spread - 1))


class Q8_0(_Symmetric):
    """8 bits: weight j = d * q[j].

    0-1   d, float16
    2-33  q[0] to q[31], int8
    """

    name = "Q8_0"
    type_id = 8
    block_bytes = 34
    low, high = -127, 127
    targets = (127, 126.5, 126, 125.5, 125, 124.5, 127.4)

    def _decode(self, blocks: Bytes) -> Floats:
        return float16_at(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)

    def _pack(self, levels: Floats) -> Bytes:
        return levels.astype(np.int8).view(np.uint8)


class Q4_0(_Symmetric):
    """4 bits: weight j = d * (q[j] - 8), q of 0 to 15.

    0-1   d, float16
    2-17  byte 2 + j, for j of 0 to 15: q[j] in bits 0-3, q[j + 16] in bits 4-7
    """

    name = "Q4_0"
    type_id = 2
    block_bytes = 18
    low, high = -8, 7
    targets = _both_signs(10.0, 6.0, 7)

    def _decode(self, blocks: Bytes) -> Floats:
        levels = split_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)
        return float16_at(blocks, 0) * levels.astype(np.float32)

    def _pack(self, levels: Floats) -> Bytes:
        return join_nibbles((levels + 8).astype(np.uint8))


class Q4_1(_Affine):
    """4 bits and a minimum: weight j = d * q[j] + m, q of 0 to 15.

    0-1   d, float16
    2-3   m, float16
    4-19  byte 4 + j, for j of 0 to 15: q[j] in bits 0-3, q[j + 16] in bits 4-7
    """

    name = "Q4_1"
    type_id = 3
    block_bytes = 20
    high = 15
    cuts = tuple((a, b) for a in (0.0, 0.03, 0.07) for b in (0.0, 0.03, 0.07))

    def _decode(self, blocks: Bytes) -> Floats:
        levels = split_nibbles(blocks[:, 4:]).astype(np.float32)
        return float16_at(blocks, 0) * levels + float16_at(blocks, 2)

    def _pack(self, levels: Bytes) -> Bytes:
        return join_nibbles(levels)


class Q5_0(_Symmetric):
    """5 bits: weight j = d * (q[j] - 16), q of 0 to 31.

    0-1   d, float16
    2-5   bit j of this 32-bit word, for j of 0 to 31: bit 4 of q[j]
    6-21  byte 6 + j, for j of 0 to 15: bits 0-3 of q[j] in bits 0-3, of q[j + 16] in bits 4-7
    """

    name = "Q5_0"
    type_id = 6
    block_bytes = 22
    low, high = -16, 15
    targets = _both_signs(18.4, 13.6, 9)

    def _decode(self, blocks: Bytes) -> Floats:
        levels = split_nibbles(blocks[:, 6:]) | (split_bits(blocks[:, 2:6]) << 4)
        levels = levels.astype(np.int8) - np.int8(16)
        return float16_at(blocks, 0) * levels.astype(np.float32)

    def _pack(self, levels: Floats) -> Bytes:
        whole = (levels + 16).astype(np.uint8)
        return np.concatenate([join_bits(whole >> 4), join_nibbles(whole)], axis=-1)


class Q5_1(_Affine):
    """5 bits and a minimum: weight j = d * q[j] + m, q of 0 to 31.

    0-1   d, float16
    2-3   m, float16
    4-7   bit j of this 32-bit word, for j of 0 to 31: bit 4 of q[j]
    8-23  byte 8 + j, for j of 0 to 15: bits 0-3 of q[j] in bits 0-3, of q[j + 16] in bits 4-7
    """

    name = "Q5_1"
    type_id = 7
    block_bytes = 24
    high = 31
    cuts = (
        *((a, b) for a in (0.0, 0.012, 0.03) for b in (0.0, 0.012, 0.03)),
        # 31 levels: weights that were on 16 levels already, as those of Q4_1 are, stay exact.
        (0.0, -1 / 30),
    )

    def _decode(self, blocks: Bytes) -> Floats:
        levels = split_nibbles(blocks[:, 8:]) | (split_bits(blocks[:, 4:8]) << 4)
        return float16_at(blocks, 0) * levels.astype(np.float32) + float16_at(blocks, 2)

    def _pack(self, levels: Bytes) -> Bytes:
        return np.concatenate([join_bits(levels >> 4), join_nibbles(levels)], axis=-1)


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
    """16 groups of 16. What the two have in common: decoding from their parts, and quantizing."""

    block_size = BLOCK
    levels_range: ClassVar[tuple[int, int]]
    scales_range: ClassVar[tuple[int, int]]
    targets: ClassVar[tuple[float, ...]]
    starts: ClassVar[tuple[float, ...]]
    rounds: ClassVar[int]

    def _decode(self, blocks: Bytes) -> Floats:
        d, scales, levels = self._unpack(blocks)
        step = d * scales.astype(np.float32)
        weights = step[:, :, None] * levels.astype(np.float32).reshape(-1, 16, 16)
        return weights.reshape(-1, BLOCK)

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        groups, shares = weights.reshape(-1, 16, 16), importance.reshape(-1, 16, 16)
        scales = fit_scale(groups, shares, *self.levels_range, self.targets)
        factor, integers, levels = nest_scales(
            groups, shares, scales, self.levels_range, self.scales_range, self.starts, self.rounds
        )
        return self._pack(factor, integers.astype(np.int8), levels.reshape(-1, BLOCK))

    @abstractmethod
    def _unpack(self, blocks: Bytes) -> tuple[Floats, np.ndarray, np.ndarray]:
        """d (n, 1), scales (n, 16) and levels of all weights in order, int8."""

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

    def _unpack(self, blocks: Bytes) -> tuple[Floats, np.ndarray, np.ndarray]:
        top = split_planes(blocks[:, :32], 1).reshape(-1, BLOCK)
        low = split_planes(blocks[:, 32:96].reshape(-1, 32), 2).reshape(-1, BLOCK)
        scales = self._unpack_scales(blocks[:, 96:108]).astype(np.int8) - np.int8(32)
        return float16_at(blocks, 108), scales, (low | (top << 2)).astype(np.int8) - np.int8(4)

    def _unpack_scales(self, packed: Bytes) -> Bytes:
        top = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
        return split_nibbles(packed[:, :8]) | (top << 4)

    def _pack(self, factor: Floats, scales: np.ndarray, levels: Floats) -> Bytes:
        q = (levels + 4).astype(np.uint8)
        s = (scales + 32).astype(np.uint8)
        top = s >> 4
        joined = [top[:, 4 * k : 4 * k + 4] << (2 * k) for k in range(4)]
        parts = [
            join_planes((q >> 2).reshape(-1, 8, 32), 1),
            join_planes(q.reshape(-1, 4, 32), 2).reshape(-1, 64),
            join_nibbles(s),
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

    def _unpack(self, blocks: Bytes) -> tuple[Floats, np.ndarray, np.ndarray]:
        low = split_nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, BLOCK)
        top = split_planes(blocks[:, 128:192].reshape(-1, 32), 2).reshape(-1, BLOCK)
        levels = (low | (top << 4)).astype(np.int8) - np.int8(32)
        return float16_at(blocks, 208), blocks[:, 192:208].view(np.int8), levels

    def _pack(self, factor: Floats, scales: np.ndarray, levels: Floats) -> Bytes:
        q = (levels + 32).astype(np.uint8)
        parts = [
            join_nibbles(q.reshape(-1, 128)).reshape(-1, 128),
            join_planes((q >> 4).reshape(-1, 4, 32), 2).reshape(-1, 64),
            scales.view(np.uint8),
            float16_bytes(factor),
        ]
        return np.concatenate(parts, axis=-1)


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


LEVELS = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.float32
)
"""The 16 levels of both formats (kvalues_iq4nl in ggml-common.h of llama.cpp)."""


class IQ4_NL(BlockFormat):
    """4 bits, uneven levels: weight j = d * LEVELS[q[j]], q of 0 to 15.

    0-1   d, float16
    2-17  byte 2 + j, for j of 0 to 15: q[j] in bits 0-3, q[j + 16] in bits 4-7
    """

    name = "IQ4_NL"
    type_id = 20
    block_size = 32
    block_bytes = 18

    def _decode(self, blocks: Bytes) -> Floats:
        levels = split_nibbles(blocks[:, 2:])
        return float16_at(blocks, 0) * LEVELS[levels]


class IQ4_XS(BlockFormat):
    """4 bits, uneven levels, nested: weight i = d * (s[i / 32] - 32) * LEVELS[q[i]], s of 0 to 63.

    0-1    d, float16
    2-3    bits 2 * g and 2 * g + 1 of this 16-bit word, for g of 0 to 7: bits 4-5 of s[g]
    4-7    byte 4 + k, for k of 0 to 3: bits 0-3 of s[2 * k] in bits 0-3, of s[2 * k + 1] in
           bits 4-7
    8-135  16 bytes for each group g of 32 weights; byte k, for k of 0 to 15: q[32 * g + k] in
           bits 0-3, q[32 * g + 16 + k] in bits 4-7
    """

    name = "IQ4_XS"
    type_id = 23
    block_size = 256
    block_bytes = 136

    def _decode(self, blocks: Bytes) -> Floats:
        word = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
        top = ((word >> np.arange(0, 16, 2, dtype=np.uint16)) & 3).astype(np.uint8)
        low = np.stack([blocks[:, 4:8] & 0x0F, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
        scales = (low | (top << 4)).astype(np.int8) - np.int8(32)
        step = float16_at(blocks, 0) * scales.astype(np.float32)
        levels = split_nibbles(blocks[:, 8:].reshape(-1, 8, 16))
        return (step[:, :, None] * LEVELS[levels]).reshape(-1, 256)


_ALL: tuple[BlockFormat, ...] = (
    F32(), F16(), BF16(), Q8_0(), Q4_0(), Q4_1(), Q5_0(), Q5_1(),
    Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K(), IQ4_NL(), IQ4_XS(),
)  # fmt: skip

FORMATS: dict[str, BlockFormat] = {format_.name: format_ for format_ in _ALL}
"""Every format of GGUF files by its name there, such as `Q4_K`."""

FORMATS_BY_ID: dict[int, BlockFormat] = {format_.type_id: format_ for format_ in _ALL}
"""The same by their numbers there (ggml_type)."""


_BEYOND_GGUF: dict[str, BlockFormat] = {AWQ.name: AWQ()}


def find_format(key: str | int) -> BlockFormat:
    """The format of a name (in any case) or a GGUF number. Raises UnsupportedError for others."""
    by_name = FORMATS | _BEYOND_GGUF
    found = FORMATS_BY_ID.get(key) if isinstance(key, int) else by_name.get(key.upper())
    if found is None:
        what = f"number {key}" if isinstance(key, int) else repr(key)
        raise UnsupportedError(
            f"ivl does not know the tensor type {what}.", f"It reads {', '.join(by_name)}."
        )
    return found
