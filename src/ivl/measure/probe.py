"""Measures what this processor can do, for `ivl plan`: about a second, with ivl's own kernels."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from ivl.kernels.cpu import read_bandwidth, use_threads
from ivl.kernels.dense import DenseMatrix, Rows, arithmetics
from ivl.kernels.dispatch import pack
from ivl.kernels.matrix import float_linear
from ivl.quant.formats import find_format

ROWS, OUTPUTS, INPUTS = 512, 2048, 2048
FORMAT = "Q4_K"
ROUNDS = 3


@torch.inference_mode()
def measure_processor(threads: int | None = None) -> dict[str, float]:
    """The processor's bandwidth, and the products of a prompt and of the tower, by the names that a
    `Probe` has for them (`ivl.planner.machine`)."""
    return {
        "threads": use_threads(threads),
        "bandwidth": read_bandwidth(),
        "quantized_ops": _quantized_ops(),
        "float_ops": _float_ops(),
        "tower_ops": _tower_ops(),
    }


def _quantized_ops() -> float:
    row_bytes = find_format(FORMAT).row_bytes(INPUTS)
    blocks = np.random.default_rng(0).integers(0, 8, (OUTPUTS, row_bytes), dtype=np.uint8)
    matrix = pack(blocks, FORMAT)
    x = torch.randn(ROWS, INPUTS)
    return _ops(lambda: matrix.linear(x))


def _float_ops() -> float:
    x = torch.randn(ROWS, INPUTS).bfloat16()
    weight = torch.randn(OUTPUTS, INPUTS).bfloat16()
    return _ops(lambda: float_linear(x, weight))


def _tower_ops() -> float:
    """In float16 panels where the processor has such products, and in torch's float32 elsewhere."""
    x, weight = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS)
    if "float16" not in arithmetics():
        return _ops(lambda: torch.nn.functional.linear(x, weight))
    matrix, rows = DenseMatrix(weight, None, "float16"), Rows("float16")
    out = torch.empty(ROWS, OUTPUTS)
    return _ops(lambda: matrix.multiply(rows.fill(x), out))


def _ops(product: Callable[[], object]) -> float:
    """Multiplications and additions a second, the best of some rounds after a first."""
    product()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        product()
        times.append(time.perf_counter() - began)
    return 2 * ROWS * OUTPUTS * INPUTS / min(times)
