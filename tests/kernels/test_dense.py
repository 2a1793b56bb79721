"""Dense products of 8 and 16 bits against float64, on every instruction set of this machine."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ivl.kernels import cpu
from ivl.kernels.dense import Arithmetic, DenseMatrix, Norm, Rows, arithmetics, tile_attention

MODULE = cpu.loaded()
ISAS = [] if MODULE is None else MODULE.usable_isas()
SIZES = [(1, 1, 1), (5, 33, 31), (12, 64, 64), (29, 100, 300), (130, 257, 96)]
"""Rows, inputs, outputs: whole tiles, panels and units, and what is left over."""


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("IVL_ISA", request.param)
    return request.param


def sample(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    # Rows of very different size, one of zeros, and one output without weights.
    x = torch.randn(rows, inputs, generator=generator) * torch.logspace(-3, 3, rows)[:, None]
    weight = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
    if rows > 2:
        x[1], weight[-1] = 0, 0
    return x, weight, torch.randn(outputs, generator=generator)


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("num_rows", "inputs", "outputs"), SIZES)
def test_int8_is_the_exact_product_of_what_was_rounded(
    isa: str, num_rows: int, inputs: int, outputs: int
) -> None:
    x, weight, bias = sample(num_rows, inputs, outputs)
    x_scale = x.abs().amax(1, keepdim=True).double() / 127
    w_scale = weight.abs().amax(1, keepdim=True).double() / 127
    x8 = (x.double() / x_scale.clamp(min=1e-30)).round() * x_scale
    w8 = (weight.double() / w_scale.clamp(min=1e-30)).round() * w_scale
    expected = F.linear(x8, w8, bias.double())
    matrix = DenseMatrix(weight, bias, "int8")
    ours = matrix.multiply(Rows("int8").fill(x), torch.empty(num_rows, outputs))
    # A value on the border of two steps may be rounded to either.
    assert error(ours, expected) < 2e-3
    assert error(ours, F.linear(x.double(), weight.double(), bias.double())) < 2e-2


@pytest.mark.parametrize(("num_rows", "inputs", "outputs"), SIZES)
def test_float16_products_are_closer_than_bfloat16(
    isa: str, num_rows: int, inputs: int, outputs: int
) -> None:
    if "float16" not in arithmetics():
        pytest.skip("no AVX-512 FP16")
    x, weight, bias = sample(num_rows, inputs, outputs)
    expected = F.linear(x.double(), weight.double(), bias.double())
    matrix = DenseMatrix(weight, bias, "float16")
    ours = matrix.multiply(Rows("float16").fill(x), torch.empty(num_rows, outputs))
    assert error(ours, expected) < 2e-3


@pytest.mark.parametrize(("num_rows", "inputs", "outputs"), SIZES)
def test_bfloat16_products_are_those_of_what_was_rounded(
    isa: str, num_rows: int, inputs: int, outputs: int
) -> None:
    if "bfloat16" not in arithmetics():
        pytest.skip("no AVX-512 BF16")
    x, weight, bias = sample(num_rows, inputs, outputs)
    expected = F.linear(x.bfloat16().double(), weight.bfloat16().double(), bias.double())
    matrix = DenseMatrix(weight, bias, "bfloat16")
    ours = matrix.multiply(Rows("bfloat16").fill(x), torch.empty(num_rows, outputs))
    assert error(ours, expected) < 1e-6


@pytest.mark.parametrize("arithmetic", ["int8", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [(32, 64, 20), (20, 32)])
def test_weights_in_several_tensors(
    isa: str, rows: tuple[int, ...], arithmetic: Arithmetic
) -> None:
    """As queries, keys and values are, whether they end with a panel or within one."""
    if arithmetic not in arithmetics():
        pytest.skip(f"no {arithmetic} here")
    x, weight, bias = sample(5, 100, sum(rows))
    whole = DenseMatrix(weight, bias, arithmetic)
    first, *more = weight.split(rows)
    joined = DenseMatrix(first, bias, arithmetic, *more)
    given = Rows(arithmetic).fill(x)
    a, b = (m.multiply(given, torch.empty(5, sum(rows))) for m in (whole, joined))
    assert torch.equal(a, b)


def test_float16_does_not_overflow(isa: str) -> None:
    if "float16" not in arithmetics():
        pytest.skip("no AVX-512 FP16")
    x, weight = torch.full((3, 512), 3e6), torch.full((40, 512), 2e5)
    ours = DenseMatrix(weight, None, "float16").multiply(
        Rows("float16").fill(x), torch.empty(3, 40)
    )
    assert error(ours, F.linear(x.double(), weight.double())) < 2e-3


def test_no_thread_count_changes_a_bit(isa: str) -> None:
    assert MODULE is not None
    x, weight, bias = sample(400, 200, 700)
    before, results = MODULE.num_threads(), []
    for threads in (1, 2, 3):
        MODULE.set_num_threads(threads)
        matrix = DenseMatrix(weight, bias, arithmetics()[-1])
        rows = Rows(arithmetics()[-1]).fill(x)
        results.append(matrix.multiply(rows, torch.empty(400, 700), gelu=True))
    MODULE.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_norms_and_what_follows_a_product_are_torchs(isa: str) -> None:
    """The rounding is taken away by an identity matrix scaled into the exact range of int8."""
    width = 127
    x = torch.randn(50, width, generator=torch.Generator().manual_seed(1)) * 3 + 1
    weight, bias = torch.linspace(0.5, 2, width), torch.linspace(-1, 1, width)
    identity = DenseMatrix(torch.eye(width), None, "int8")
    layer = Norm(kind="layer", weight=weight, bias=bias, eps=1e-6)
    rms = Norm(kind="rms", weight=weight, bias=None, eps=1e-6)
    expected = {
        "layer": F.layer_norm(x, (width,), weight, bias, 1e-6),
        "rms": F.rms_norm(x, (width,), weight, 1e-6),
    }
    for norm in (layer, rms):
        rows = Rows("int8").fill(x, norm)
        step = expected[norm.kind].abs().amax(1, keepdim=True) / 127
        ours = identity.multiply(rows, torch.empty(50, width))
        assert bool(((ours - expected[norm.kind]).abs() <= 0.51 * step).all())
        after = identity.multiply(rows, torch.empty(50, width), gelu=True)
        torch.testing.assert_close(after, F.gelu(ours), atol=2e-6, rtol=1e-5)
        added = identity.add_scaled(rows, x.clone(), weight)
        torch.testing.assert_close(added, x + weight * ours, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("arithmetic", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("positions", "heads", "head_dim"), [(17, 3, 16), (65, 2, 64), (150, 1, 128)]
)
def test_attention_between_positions_is_torchs(
    isa: str, positions: int, heads: int, head_dim: int, arithmetic: Arithmetic
) -> None:
    if arithmetic == "bfloat16" and arithmetic not in arithmetics():
        pytest.skip("no AVX-512 BF16")
    qkv = torch.randn(
        2, positions, 3 * heads * head_dim, generator=torch.Generator().manual_seed(2)
    )
    q, k, v = qkv.double().view(2, positions, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = torch.empty(2, positions, heads * head_dim)
    ours = tile_attention(qkv, heads, out, arithmetic)
    assert error(ours, expected) < (2e-3 if arithmetic == "float16" else 6e-3)


def test_with_products_of_int8_attention_is_of_16_bits_where_there_are_such(isa: str) -> None:
    has = [one for one in ("float16", "bfloat16") if one in arithmetics()]
    if not has:
        pytest.skip("no products of 16 bits")
    qkv = torch.randn(1, 65, 3 * 128, generator=torch.Generator().manual_seed(2))
    of_bytes = tile_attention(qkv, 2, torch.empty(1, 65, 128), "int8")
    assert torch.equal(of_bytes, tile_attention(qkv, 2, torch.empty(1, 65, 128), has[0]))


def test_a_wrong_shape_is_refused_before_anything_is_written() -> None:
    if MODULE is None:
        pytest.skip("the C++ extension was not built")
    matrix, rows = DenseMatrix(torch.ones(40, 64), None, "int8"), Rows("int8")
    rows.fill(torch.ones(3, 64))
    for out in (torch.empty(4, 40), torch.empty(3, 80)):
        with pytest.raises(ValueError, match="out: the shape"):
            matrix.multiply(rows, out)
