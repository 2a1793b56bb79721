"""Products with weights of 16 and 32 bits against float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ivl.kernels import cpu, matrix
from ivl.kernels.dispatch import pack
from ivl.kernels.matrix import can_multiply
from ivl.quant.formats import find_format

if cpu._extension is None:
    pytest.skip("the C++ extension was not built", allow_module_level=True)


@pytest.fixture(params=cpu._extension.usable_isas(), autouse=True)
def _isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = cpu._extension.isa()
    monkeypatch.delenv("IVL_ISA", raising=False)
    monkeypatch.setattr(matrix, "ours_is_faster", lambda dtype: True)
    assert cpu._extension.use_isa(request.param)
    yield
    cpu._extension.use_isa(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_x", "rows", "columns"),
    [(1, 1, 1), (1, 33, 7), (7, 70, 100), (8, 65, 528), (9, 33, 16), (40, 70, 1025), (33, 31, 512)],
)
def test_products(dtype: torch.dtype, num_x: int, rows: int, columns: int) -> None:
    """Odd numbers of everything, few rows and many, more columns than one slice."""
    torch.manual_seed(0)
    weight, bias = torch.randn(rows, columns).to(dtype), torch.randn(rows)
    x = torch.randn(num_x, columns)
    exact = x.double() @ weight.double().T + bias.double()
    result = matrix.float_linear(x, weight, bias)
    assert float((result - exact).norm() / exact.norm()) < 1e-6
    rounded = matrix.float_linear(x.to(dtype), weight)
    assert rounded.dtype == dtype
    exact = x.to(dtype).double() @ weight.double().T
    assert torch.allclose(rounded.double(), exact, rtol=2**-8, atol=1e-5 * columns)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_matrices_of_a_file(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((20, 96), np.float32)
    blocks = find_format(name).quantize(weights)
    blocks.flags.writeable = False  # as a mapped file is
    matrix = pack(blocks, name)
    exact = torch.from_numpy(weights).to(matrix.rows_at(torch.arange(20)).dtype)
    assert torch.allclose(matrix.dequantize(), exact, rtol=2**-8)
    x = torch.randn(3, 96)
    expected = x.double() @ matrix.dequantize().double().T
    assert torch.allclose(matrix.linear(x).double(), expected, atol=1e-5)


def test_nothing_in_nothing_out() -> None:
    assert matrix.float_linear(torch.empty(0, 32), torch.ones(5, 32)).shape == (0, 5)
    assert matrix.float_linear(torch.ones(2, 32), torch.empty(0, 32)).shape == (2, 0)


def test_a_wanted_gradient_is_left_to_torch() -> None:
    weight = torch.ones(4, 8, requires_grad=True)
    x = torch.ones(1, 8)
    assert not can_multiply(x, weight)
    matrix.float_linear(x, weight).sum().backward()
    assert weight.grad is not None
    with torch.inference_mode():
        assert can_multiply(x, weight)
