"""Floating-point formats: blocks of a single weight."""

from __future__ import annotations

import numpy as np

from ivl.quant.block_format import BlockFormat, Bytes, Floats


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
