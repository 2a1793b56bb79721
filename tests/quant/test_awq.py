"""The AWQ block format, against AutoAWQ's formulas written out weight by weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivl.errors import UnsupportedError
from ivl.kernels.dispatch import pack
from ivl.quant.awq import AWQ, Groups, fit, join_groups, split_groups
from ivl.quant.formats import FORMATS, find_format


def random_groups(rows: int, groups: int, seed: int = 0) -> Groups:
    rng = np.random.default_rng(seed)
    return Groups(
        rng.integers(0, 16, (rows, groups, 128), np.uint8),
        rng.uniform(1e-3, 2e-2, (rows, groups)).astype(np.float16).astype(np.float32),
        rng.integers(0, 16, (rows, groups), np.uint8),
    )


def test_a_block_means_scale_times_level_less_zero_point() -> None:
    groups = random_groups(rows=5, groups=3)
    blocks = join_groups(groups).reshape(5, 3 * 68)
    expected = [
        [scale * (int(q) - int(zero)) for q in levels]
        for levels, scale, zero in zip(
            groups.levels.reshape(-1, 128), groups.scales.flat, groups.zeros.flat, strict=True
        )
    ]
    found = AWQ().dequantize(blocks)
    np.testing.assert_array_equal(found, np.array(expected, np.float32).reshape(5, 384))
    for part, again in zip(groups, split_groups(blocks.reshape(5, 3, 68)), strict=True):
        np.testing.assert_array_equal(part, again)


def test_weights_lie_where_the_layout_says() -> None:
    groups = Groups(
        np.arange(128, dtype=np.uint8)[None] % 16, np.array([0.5], np.float32), np.array([7])
    )
    block = join_groups(groups)[0]
    assert block[:4].tolist() == [0x00, 0x38, 7, 0]  # 0.5 in float16 is 0x3800
    assert block[4 + 5] == 5 | (5 + 64) % 16 << 4


def test_rounding_is_that_of_autoawq_where_it_has_one() -> None:
    """AutoAWQ's pseudo_quantize_tensor with a zero point, for groups that straddle zero."""
    weights = torch.randn(40, 128, generator=torch.Generator().manual_seed(0)) * 0.05
    most, least = weights.amax(1, keepdim=True), weights.amin(1, keepdim=True)
    scales = ((most - least) / 15).half().float()
    zeros = (-torch.round(least / scales)).clamp(0, 15)
    expected = (torch.clamp(torch.round(weights / scales) + zeros, 0, 15) - zeros) * scales
    found = fit(weights.numpy(), np.float32(1)).dequantize()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-7)


@pytest.mark.parametrize("shift", [0.0, 0.4, -0.4])
def test_quantizing_errs_less_than_rounding_alone(shift: float) -> None:
    rng = np.random.default_rng(1)
    weights = (rng.standard_normal((16, 256)) * 0.05 + shift).astype(np.float32)
    importance = rng.uniform(0, 4, 256).astype(np.float32) ** 2
    plain = fit(weights.reshape(16, 2, 128), np.float32(1)).dequantize().reshape(16, 256)
    found = AWQ().dequantize(AWQ().quantize(weights, importance))

    def error(stored: np.ndarray) -> float:
        return float((importance * (stored - weights) ** 2).sum())

    assert error(found) < error(plain)
    assert np.abs(plain - weights).max() <= (0.05 * 8 + abs(shift)) / 15


@pytest.mark.parametrize("value", [0.0, 1e-9, 3e-8, 65000.0, -0.25])
def test_constant_groups_give_finite_weights(value: float) -> None:
    weights = np.full((2, 128), value, np.float32)
    found = AWQ().dequantize(AWQ().quantize(weights))
    np.testing.assert_allclose(found, weights, rtol=1e-3, atol=6e-8)


def test_rows_of_other_lengths_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 128"):
        AWQ().quantize(np.zeros((2, 192), np.float32))


def test_a_matrix_multiplies_by_it() -> None:
    blocks = join_groups(random_groups(rows=48, groups=2)).reshape(48, -1)
    matrix = pack(blocks, "AWQ")
    assert (matrix.rows, matrix.columns, matrix.format) == (48, 256, "AWQ")
    x = torch.randn(3, 256)
    expected = x.double() @ torch.from_numpy(AWQ().dequantize(blocks)).double().T
    error = (matrix.linear(x).double() - expected).norm() / expected.norm()
    assert error < 2e-2


def test_is_no_format_of_gguf_files() -> None:
    assert "AWQ" not in FORMATS
    assert find_format("awq").name == "AWQ"
    with pytest.raises(UnsupportedError):
        find_format(AWQ.type_id)
