"""The C++ products against float64 products, on every instruction set of this machine.

The oracle is the package `gguf`, which dequantizes the weights (our own reference for AWQ, which it
does not know), and the activations as the extension quantized them. Blocks are of random bytes, so
that every value of every field occurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch

from ivl.kernels import cpu
from ivl.kernels.dispatch import pack
from ivl.kernels.matrix import CpuMatrix
from ivl.quant.formats import FORMATS, find_format
from tests.kernels.random_blocks import random_blocks, weights_of

if cpu._extension is None:
    pytest.skip("the C++ extension was not built", allow_module_level=True)

QUANTIZED = [
    name for name, format_ in FORMATS.items() if cpu._extension.supports_format(format_.type_id)
]


@pytest.fixture(params=cpu._extension.usable_isas())
def extension(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The extension, with one of the instruction sets that can run here."""
    module, before = cpu._extension, cpu._extension.isa()
    assert module.use_isa(request.param)
    yield module
    module.use_isa(before)


def quantized(module: ModuleType, x: torch.Tensor) -> np.ndarray:
    """The activations (rows, columns) as the extension rounds them, float64."""
    rows, columns = x.shape
    values = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // 32), np.float32)
    module.quantize_rows(x, values, scales)
    return values * scales.astype(np.float64).repeat(32, axis=1)


def relative_error(result: torch.Tensor, exact: np.ndarray) -> float:
    return float(np.linalg.norm(result.double().numpy() - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize(
    ("rows", "blocks", "num_x"), [(1, 1, 1), (37, 5, 1), (48, 9, 3), (70, 5, 8), (33, 9, 29)]
)
def test_products(extension: ModuleType, name: str, rows: int, blocks: int, num_x: int) -> None:
    """Fewer rows than a panel, odd numbers of blocks, one tile of activations and several."""
    columns = blocks * find_format(name).block_size
    packed = random_blocks(name, rows, columns)
    torch.manual_seed(0)
    x, bias = torch.randn(num_x, columns), torch.randn(rows)
    matrix = CpuMatrix(packed, name, extension)
    exact = quantized(extension, x) @ weights_of(name, packed).astype(np.float64).T
    assert relative_error(matrix.linear(x), exact) < 1e-5
    assert relative_error(matrix.linear(x, bias), exact + bias.double().numpy()) < 1e-5


@pytest.mark.parametrize("name", QUANTIZED)
def test_rows_are_bit_for_bit_those_of_the_reference(extension: ModuleType, name: str) -> None:
    blocks = random_blocks(name, 21, 2 * find_format(name).block_size)
    matrix = CpuMatrix(blocks, name, extension)
    rows = torch.from_numpy(weights_of(name, blocks).copy())
    assert torch.equal(matrix.dequantize(), rows)
    ids = torch.tensor([[20, 0, 5], [5, 16, 15]])
    assert torch.equal(matrix.rows_at(ids), rows[ids])


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q2_K", "Q8_0", "IQ4_XS"])
def test_results_do_not_depend_on_the_batch(extension: ModuleType, name: str) -> None:
    """A row of activations gives the same bits alone and among others: speculation relies on it."""
    matrix = CpuMatrix(random_blocks(name, 40, 1280), name, extension)
    x = torch.randn(27, 1280)
    together = matrix.linear(x)
    assert torch.equal(together[:5], matrix.linear(x[:5]))
    assert torch.equal(together, torch.cat([matrix.linear(row[None]) for row in x]))


def test_results_do_not_depend_on_the_threads(extension: ModuleType) -> None:
    matrix = CpuMatrix(random_blocks("Q4_K", 600, 512), "Q4_K", extension)
    x, before = torch.randn(50, 512), extension.num_threads()
    results = []
    for count in (1, 2, 3, 7):
        extension.set_num_threads(count)
        results.append(matrix.linear(x))
    extension.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_of_16_bits(extension: ModuleType, dtype: torch.dtype) -> None:
    matrix = CpuMatrix(random_blocks("Q4_K", 37, 512), "Q4_K", extension)
    x, bias = torch.randn(5, 512).to(dtype), torch.randn(37).to(dtype)
    expected = matrix.linear(x.float(), bias.float()).to(dtype)
    assert torch.equal(matrix.linear(x, bias), expected)


def test_activations_are_rounded_to_the_nearest_of_8_bits(extension: ModuleType) -> None:
    x = torch.randn(14, 96) * torch.logspace(-6, 6, 96)
    x[3, :32] = 0
    groups = x.double().numpy().reshape(14, 3, 32)
    step = np.abs(groups).max(axis=-1, keepdims=True) / 127
    error = np.abs(quantized(extension, x).reshape(14, 3, 32) - groups)
    assert (error <= step * 0.50001).all()


def test_unaligned_memory(extension: ModuleType) -> None:
    blocks = random_blocks("Q6_K", 32, 512)
    matrix = CpuMatrix(blocks, "Q6_K", extension)
    moved = np.empty(blocks.size + 1, np.uint8)[1:].reshape(blocks.shape)
    moved[:] = blocks
    x = torch.randn(3 * 512 + 1)
    out = np.zeros(3 * 32 * 4 + 1, np.uint8)
    same = CpuMatrix(moved, "Q6_K", extension)
    unaligned = out[1:].view(np.float32).reshape(3, 32)
    same.packed.matmul(x[1:].reshape(3, 512), None, unaligned)
    expected = matrix.linear(x[1:].reshape(3, 512).clone())
    assert out[1:].tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("rows", [(32, 16, 21), (21, 32)])
def test_rows_in_several_arrays(extension: ModuleType, rows: tuple[int, ...]) -> None:
    """As those of queries, keys and values are, whether they end with a panel or within one."""
    blocks = random_blocks("Q4_K", sum(rows), 512)
    parts = np.split(blocks, np.cumsum(rows)[:-1])
    joined, whole = pack(parts, "Q4_K"), pack(blocks, "Q4_K")
    assert torch.equal(joined.dequantize(), whole.dequantize())
    x = torch.randn(3, 512)
    assert torch.equal(joined.linear(x), whole.linear(x))


def test_nothing_in_nothing_out(extension: ModuleType) -> None:
    matrix = CpuMatrix(random_blocks("Q4_K", 16, 256), "Q4_K", extension)
    assert matrix.linear(torch.empty(2, 0, 256)).shape == (2, 0, 16)
    assert matrix.rows_at(torch.empty(0, dtype=torch.int64)).shape == (0, 256)
    empty = CpuMatrix(np.empty((0, 144), np.uint8), "Q4_K", extension)
    assert empty.linear(torch.ones(3, 256)).shape == (3, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_shows_in_the_result(extension: ModuleType, bad: float) -> None:
    matrix = CpuMatrix(random_blocks("Q4_K", 16, 256), "Q4_K", extension)
    x = torch.ones(2, 256)
    x[1, 100] = bad
    result = matrix.linear(x)
    assert torch.isfinite(result[0]).all()
    assert torch.isnan(result[1]).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_memory_stays_close_to_the_file(extension: ModuleType, name: str) -> None:
    blocks = random_blocks(name, 64, 1024)
    assert CpuMatrix(blocks, name, extension).num_bytes <= 1.06 * blocks.nbytes
