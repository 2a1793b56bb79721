"""The kernels for GPUs against float64 products, on a GPU or else in Triton's interpreter.

The oracle is the package `gguf`, which dequantizes the weights (our own reference for AWQ, which it
does not know). Blocks are of random bytes, so that every value of every field occurs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivl.kernels import dispatch
from ivl.kernels.matrix import Matrix
from ivl.kernels.triton.layout import LAYOUTS
from ivl.quant.block_sizes import gpu_bytes
from ivl.quant.formats import FORMATS, find_format
from tests.kernels.random_blocks import random_blocks, weights_of

pytest.importorskip("triton", reason="Triton is there on Linux only")

from ivl.kernels.triton.matrix import MATVEC_ROWS, TritonMatrix

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALL = sorted(LAYOUTS)


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result.cpu().double() - exact).norm() / exact.norm())


def test_every_quantized_format_has_a_layout() -> None:
    quantized = {name for name, format_ in FORMATS.items() if format_.block_size > 1}
    assert set(LAYOUTS) == quantized | {"AWQ"}


@pytest.mark.parametrize("name", ALL)
def test_rows_are_those_of_the_reference(name: str) -> None:
    """Columns that fill no strip of 128, or an odd number of them, where the format allows it."""
    size = find_format(name).block_size
    blocks = random_blocks(name, 5, 11 * 32 if size == 32 else 3 * size)
    matrix = TritonMatrix(blocks, name, DEVICE)
    rows = torch.from_numpy(weights_of(name, blocks).copy())
    ids = torch.tensor([[4, 0, 3], [3, 1, 2]])
    taken = matrix.rows_at(ids.to(DEVICE))
    assert taken.shape == (2, 3, matrix.columns)
    if DEVICE == "cpu":
        assert torch.equal(taken, rows[ids])
    else:  # a product and a sum may be rounded once
        torch.testing.assert_close(taken.cpu(), rows[ids], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_products(name: str) -> None:
    """One row and some through one kernel, many through the other; rows and columns that fill no
    tile, with a bias and without."""
    size = find_format(name).block_size
    num_blocks = {32: 5, 128: 3, 256: 2}[size]
    blocks = random_blocks(name, 21, num_blocks * size)
    matrix = TritonMatrix(blocks, name, DEVICE)
    weights = torch.from_numpy(weights_of(name, blocks).astype(np.float64))
    torch.manual_seed(0)
    for num_x, has_bias in ((1, True), (3, False), (MATVEC_ROWS + 1, True)):
        x, bias = torch.randn(num_x, matrix.columns), torch.randn(21)
        exact = x.double() @ weights.T + (bias.double() if has_bias else 0)
        result = matrix.linear(x.to(DEVICE), bias.to(DEVICE) if has_bias else None)
        assert relative_error(result, exact) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_x", [1, MATVEC_ROWS, 40])
def test_activations_of_16_bits(dtype: torch.dtype, num_x: int) -> None:
    if dtype == torch.bfloat16 and num_x > MATVEC_ROWS and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies tiles of bfloat16 as if they were integers")
    blocks = random_blocks("Q4_K", 21, 512)
    matrix = TritonMatrix(blocks, "Q4_K", DEVICE)
    x, bias = torch.randn(num_x, 512).to(dtype), torch.randn(21).to(dtype)
    exact = x.double() @ torch.from_numpy(weights_of("Q4_K", blocks)).double().T + bias.double()
    result = matrix.linear(x.to(DEVICE)[None], bias.to(DEVICE))
    assert result.dtype == dtype
    assert result.shape == (1, num_x, 21)
    assert relative_error(result[0], exact) < 1e-2


def test_a_matrix_of_more_columns_than_a_program_takes_at_once() -> None:
    blocks = random_blocks("Q4_0", 3, 128 * 17)
    matrix = TritonMatrix(blocks, "Q4_0", DEVICE)
    x = torch.randn(2, matrix.columns)
    exact = x.double() @ torch.from_numpy(weights_of("Q4_0", blocks)).double().T
    assert relative_error(matrix.linear(x.to(DEVICE)), exact) < 1e-5


def test_rows_that_are_loaded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks("Q6_K", 10, 256)
    whole = TritonMatrix(blocks, "Q6_K", DEVICE).dequantize()
    monkeypatch.setattr("ivl.kernels.triton.layout.WEIGHTS_AT_ONCE", 3 * 256)
    assert torch.equal(TritonMatrix(blocks, "Q6_K", DEVICE).dequantize(), whole)


def test_nothing_in_nothing_out() -> None:
    matrix = TritonMatrix(random_blocks("Q4_K", 16, 256), "Q4_K", DEVICE)
    assert matrix.linear(torch.empty(2, 0, 256, device=DEVICE)).shape == (2, 0, 16)
    assert matrix.rows_at(torch.empty(0, dtype=torch.int64)).shape == (0, 256)
    with pytest.raises(IndexError):
        matrix.rows_at(torch.tensor([16]))
    with pytest.raises(ValueError, match="must be"):
        matrix.linear(torch.ones(1, 255))


@pytest.mark.parametrize("name", ALL)
def test_memory_is_what_the_plan_says_and_close_to_the_file(name: str) -> None:
    size = find_format(name).block_size
    blocks = random_blocks(name, 4, 1024)
    matrix = TritonMatrix(blocks, name, DEVICE)
    assert matrix.num_bytes == gpu_bytes(name, 4, 1024)
    assert matrix.num_bytes <= 1.04 * blocks.nbytes
    odd = random_blocks(name, 3, 3 * size)
    assert TritonMatrix(odd, name, DEVICE).num_bytes == gpu_bytes(name, 3, 3 * size)


def test_what_a_device_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA what is quantized stays so; a device that has no kernels unpacks."""
    assert dispatch.keeps_blocks("Q4_K", "cuda")
    assert not dispatch.keeps_blocks("BF16", "cuda")
    assert not dispatch.keeps_blocks("Q4_K", "mps")
    assert dispatch.keeps_blocks("BF16", "cpu")
    monkeypatch.setenv("IVL_ISA", "reference")
    monkeypatch.setattr(dispatch, "runs_triton", lambda device: True)
    blocks = random_blocks("Q5_0", 4, 128)
    matrix: Matrix = dispatch.pack(blocks, "Q5_0", DEVICE)
    assert isinstance(matrix, TritonMatrix)
