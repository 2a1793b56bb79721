"""AWQ weights as files have them, and as `ivl.quant.awq` keeps them in memory; both ways, exactly.

For a linear layer of (outputs, inputs) there are three tensors in the place of `weight`:

    qweight  int32    (inputs, outputs / 8)
    qzeros   int32    (inputs / 128, outputs / 8)
    scales   float16  (inputs / 128, outputs)

so that input i meets output o with the weight

    scales[i // 128, o] * (q[i, o] - z[i // 128, o])

q and z are 4 bits, eight neighbouring outputs to a word. Bits 4n to 4n+3 of a word belong to
output `NIBBLE_OUTPUTS[n]` of the eight. This is the "GEMM" version of AutoAWQ (`WQLinear_GEMM`),
which vLLM, LMDeploy and transformers read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ivl.errors import CheckpointError
from ivl.quant.awq import AWQ, GROUP_SIZE, Groups, join_groups, split_groups
from ivl.quant.block_format import Bytes

NIBBLE_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
OUTPUTS_PER_WORD = 8

_OUTPUT_NIBBLES = np.argsort(NIBBLE_OUTPUTS)
_OUTPUTS_AT_ONCE = 256
"""Bounds the memory beside a matrix and its blocks."""


class AwqTensors(NamedTuple):
    """A linear layer as it is stored. int32, int32, float16; shapes as above."""

    qweight: np.ndarray
    qzeros: np.ndarray
    scales: np.ndarray


def stored_shapes(outputs: int, inputs: int) -> tuple[tuple[int, int], ...]:
    """The shapes of qweight, qzeros and scales of a layer."""
    groups, words = inputs // GROUP_SIZE, outputs // OUTPUTS_PER_WORD
    return (inputs, words), (groups, words), (groups, outputs)


def can_hold(outputs: int, inputs: int) -> bool:
    """Whether a layer of these sizes can be stored: whole words, whole groups."""
    return outputs % OUTPUTS_PER_WORD == 0 and inputs % GROUP_SIZE == 0


def to_blocks(stored: AwqTensors) -> Bytes:
    """uint8 (outputs, inputs / 128 * 68): the rows of the layer in the block format `AWQ`.

    CheckpointError when a scale is not finite.
    """
    inputs, words = stored.qweight.shape
    groups, outputs = inputs // GROUP_SIZE, words * OUTPUTS_PER_WORD
    if not np.isfinite(stored.scales).all():
        raise CheckpointError(
            "AWQ weights have scales that are not finite.",
            "The checkpoint is damaged, or it was quantized with activations beyond float16.",
        )
    blocks = np.empty((outputs, groups * AWQ.block_bytes), np.uint8)
    for start in range(0, outputs, _OUTPUTS_AT_ONCE):
        part = slice(start, start + _OUTPUTS_AT_ONCE)
        in_words = slice(start // OUTPUTS_PER_WORD, part.stop // OUTPUTS_PER_WORD)
        levels = np.ascontiguousarray(_unpack(stored.qweight[:, in_words]).T)
        parts = Groups(
            levels.reshape(len(levels), groups, GROUP_SIZE),
            stored.scales[:, part].T.astype(np.float32),
            _unpack(stored.qzeros[:, in_words]).T,
        )
        blocks[part] = join_groups(parts).reshape(len(levels), -1)
    return blocks


def from_blocks(blocks: Bytes) -> AwqTensors:
    """The inverse of `to_blocks`: what to store for rows in the block format `AWQ`."""
    outputs = len(blocks)
    groups = blocks.shape[1] // AWQ.block_bytes
    qweight, qzeros, scales = (
        np.empty(shape, kind)
        for shape, kind in zip(
            stored_shapes(outputs, groups * GROUP_SIZE), ("<i4", "<i4", "<f2"), strict=True
        )
    )
    for start in range(0, outputs, _OUTPUTS_AT_ONCE):
        part = slice(start, start + _OUTPUTS_AT_ONCE)
        in_words = slice(start // OUTPUTS_PER_WORD, part.stop // OUTPUTS_PER_WORD)
        rows = blocks[part]
        parts = split_groups(rows.reshape(len(rows), groups, AWQ.block_bytes))
        qweight[:, in_words] = _pack(parts.levels.reshape(len(rows), -1).T)
        qzeros[:, in_words] = _pack(parts.zeros.T)
        scales[:, part] = parts.scales.T
    return AwqTensors(qweight, qzeros, scales)


def _unpack(words: np.ndarray) -> Bytes:
    """4-bit numbers uint8 (n, outputs) of words int32 (n, outputs / 8)."""
    pairs = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    pairs = pairs.reshape(*words.shape, OUTPUTS_PER_WORD // 2)
    nibbles = np.stack([pairs & 0x0F, pairs >> 4], axis=-1).reshape(*words.shape, OUTPUTS_PER_WORD)
    return nibbles[..., _OUTPUT_NIBBLES].reshape(len(words), -1)


def _pack(numbers: Bytes) -> np.ndarray:
    """Words int32 (n, outputs / 8) of 4-bit numbers uint8 (n, outputs)."""
    eights = numbers.reshape(len(numbers), -1, OUTPUTS_PER_WORD)[..., list(NIBBLE_OUTPUTS)]
    pairs = np.ascontiguousarray(eights[..., 0::2] | (eights[..., 1::2] << 4))
    return pairs.view("<i4")[..., 0]
