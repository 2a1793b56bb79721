"""AWQ files against AutoAWQ's own formulas (WQLinear_GEMM.from_linear), bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from ivl.checkpoint.awq import AwqTensors, from_blocks, to_blocks
from ivl.errors import CheckpointError
from ivl.quant.awq import AWQ

INPUTS, OUTPUTS = 384, 264


def random_tensors(seed: int = 0, inputs: int = INPUTS, outputs: int = OUTPUTS) -> AwqTensors:
    """Random bits: every word is a valid one."""
    rng = np.random.default_rng(seed)
    any_word = np.iinfo(np.int32)
    return AwqTensors(
        rng.integers(any_word.min, any_word.max, (inputs, outputs // 8), np.int32),
        rng.integers(any_word.min, any_word.max, (inputs // 128, outputs // 8), np.int32),
        rng.uniform(1e-4, 1e-2, (inputs // 128, outputs)).astype(np.float16),
    )


def shifted_out(words: np.ndarray) -> np.ndarray:
    """Written after AutoAWQ: shift by 0, 4, ... 28, then restore the order of the columns."""
    shifts = np.arange(0, 32, 4)
    nibbles = (words[:, :, None].astype(np.int64) >> shifts) & 0xF
    return nibbles[:, :, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(len(words), -1)


def test_reads_what_autoawq_means() -> None:
    stored = random_tensors()
    group = np.arange(INPUTS) // 128
    levels, zeros = shifted_out(stored.qweight), shifted_out(stored.qzeros)
    expected = stored.scales.astype(np.float32)[group] * (levels - zeros[group]).astype(np.float32)
    found = AWQ().dequantize(to_blocks(stored))
    np.testing.assert_array_equal(found, expected.T)


def test_packs_as_autoawq_does() -> None:
    """Its loop, word by word: bits 4i of a word take column order_map[i]."""
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 16, (128, 16))
    words = np.zeros((128, 2), np.int64)
    for column in range(2):
        for i, place in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words[:, column] |= levels[:, column * 8 + place] << (4 * i)
    stored = AwqTensors(
        words.astype(np.uint32).view(np.int32),
        np.zeros((1, 2), np.int32),
        np.ones((1, 16), np.float16),
    )
    np.testing.assert_array_equal(AWQ().dequantize(to_blocks(stored)), levels.T)


def test_writing_gives_back_every_bit() -> None:
    stored = random_tensors(seed=1, inputs=256, outputs=1032)
    for ours, theirs in zip(from_blocks(to_blocks(stored)), stored, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_scales_beyond_float16_are_refused(scale: float) -> None:
    stored = random_tensors()
    stored.scales[1, 5] = scale
    with pytest.raises(CheckpointError, match="not finite"):
        to_blocks(stored)
