"""The plain formats: 32 weights with one float16 scale, and in Q4_1 and Q5_1 one minimum."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from ivl.quant.block_format import (
    BlockFormat,
    Bytes,
    Floats,
    float16_at,
    float16_bytes,
    to_float16,
)
from ivl.quant.search import divide, fit_affine, fit_scale, round_to_levels

_HALF = 16


def split_nibbles(packed: Bytes) -> Bytes:
    """Levels (n, 32) of bytes (n, 16): low halves are weights 0-15, high halves 16-31."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def join_nibbles(levels: Bytes) -> Bytes:
    """Bytes (n, 16) of the low four bits of levels (n, 32), as `split_nibbles` reads them."""
    return (levels[:, :_HALF] & 0x0F) | (levels[:, _HALF:] << 4)


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
