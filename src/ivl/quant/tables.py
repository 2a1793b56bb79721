"""Formats whose levels are in a table, not evenly spaced: read here, never written."""

from __future__ import annotations

import numpy as np

from ivl.quant.block_format import BlockFormat, Bytes, Floats, float16_at

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
        packed = blocks[:, 2:]
        levels = np.concatenate([packed & 0x0F, packed >> 4], axis=-1)
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
        packed = blocks[:, 8:].reshape(-1, 8, 16)
        levels = np.concatenate([packed & 0x0F, packed >> 4], axis=-1)
        return (step[:, :, None] * LEVELS[levels]).reshape(-1, 256)
