"""What lies between products, against PyTorch's operations, rounding included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is there on Linux only")

from ivl.kernels.linear import RMSNorm
from ivl.kernels.triton import pointwise
from ivl.model.decoder import rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for sums in another order, which may round a last bit otherwise."""
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[expected.dtype]
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 100), (2, 896)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_rms_norm(dtype: torch.dtype, rows: int, width: int, size: float) -> None:
    x, delta = values(rows, width, dtype=dtype) * size, values(rows, width, dtype=dtype, seed=1)
    norm = RMSNorm(width, 1e-6)
    norm.weight.data = values(width, dtype=dtype, seed=2)
    weight = norm.weight.detach().to(DEVICE)
    with torch.no_grad():
        near(pointwise.rms_norm(x.to(DEVICE), weight, 1e-6), norm(x))
        total, normed = pointwise.add_rms_norm(x.to(DEVICE), delta.to(DEVICE), weight, 1e-6)
        near(total, x + delta)  # the interpreter cuts bfloat16 off where a GPU rounds it
        near(normed, norm(x + delta))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 1023, 5000])
def test_swiglu(dtype: torch.dtype, count: int) -> None:
    gate, up = values(count, dtype=dtype) * 10, values(count, dtype=dtype, seed=1)
    near(pointwise.swiglu(gate.to(DEVICE), up.to(DEVICE)), F.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 2), (5, 3, 64), (2, 7, 24)])
def test_rotary(dtype: torch.dtype, tokens: int, heads: int, width: int) -> None:
    x = values(tokens, heads, width, dtype=dtype)
    angle = torch.rand(tokens, width, generator=torch.Generator().manual_seed(3)) * 6
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    expected = rotate(x.transpose(0, 1)[None], cos, sin)[0].transpose(0, 1)
    near(pointwise.rotate(x.to(DEVICE), cos.to(DEVICE), sin.to(DEVICE)), expected)
