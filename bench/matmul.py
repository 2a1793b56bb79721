"""Products with quantized matrices beside the limits of the machine.

    python -m bench.matmul [--formats Q4_K,Q6_K] [--threads 2] [--rows 11008] [--columns 2048]

For each format: how many bytes of weights a second are read for 1 and for 8 rows of activations
(decoding, and a small batch), and how many operations a second are done for 512 rows (a prompt).
The limits are measured in the same run: all threads reading memory that was written before, and
products of bytes whose operands are in registers. Figures are medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from bench.shapes import commit, machine
from ivl.kernels import cpu
from ivl.kernels.dispatch import pack
from ivl.kernels.matrix import Matrix
from ivl.quant.formats import FORMATS, find_format

WORKING_SET_BYTES = 400 << 20
"""Weights that are gone through in turn: more than a cache would hold for one of two cores."""

ROUNDS = 5


def main() -> None:
    options = parse_options()
    extension = cpu.extension()
    if extension is None:
        raise SystemExit("error: the C++ extension is not there, or IVL_ISA is reference.")
    if options.threads:
        extension.set_num_threads(options.threads)
        torch.set_num_threads(options.threads)
    print(f"{machine()}, commit {commit()}")
    print(f"{extension.isa()}, {extension.num_threads()} threads")
    bandwidth, peak = cpu.read_bandwidth(), cpu.byte_products()
    assert peak is not None
    print(f"limits: memory {bandwidth / 1e9:.1f} GB/s, products of bytes {peak / 1e9:.0f} GOP/s\n")
    print("| format | 1 row, GB/s | of the limit | 8 rows, GB/s | 512 rows, GOP/s | of the limit |")
    print("|---|---|---|---|---|---|")
    for name in options.formats.split(","):
        one, eight, many = measure(name, options.rows, options.columns)
        # Weights of 16 and 32 bits are multiplied in float32, whose limit is another one.
        share = f"{many / peak:.0%}" if extension.supports_format(find_format(name).type_id) else ""
        print(
            f"| {name} | {one / 1e9:.1f} | {one / bandwidth:.0%} | {eight / 1e9:.1f} "
            f"| {many / 1e9:.0f} | {share} |"
        )


def parse_options() -> argparse.Namespace:
    names = [name for name in FORMATS if name != "F32"]
    parser = argparse.ArgumentParser(description="Products with quantized matrices.")
    parser.add_argument("--formats", default=",".join(names), help="names, with commas between")
    parser.add_argument("--threads", type=int, help="by default what ivl would use")
    parser.add_argument("--rows", type=int, default=11008, help="outputs of the matrices")
    parser.add_argument("--columns", type=int, default=2048, help="inputs of the matrices")
    return parser.parse_args()


def measure(name: str, rows: int, columns: int) -> tuple[float, float, float]:
    """Bytes a second with 1 and with 8 rows of activations; operations a second with 512."""
    format_ = find_format(name)
    count = max(2, WORKING_SET_BYTES // (rows * format_.row_bytes(columns)))
    matrices = [pack(random_blocks(name, rows, columns), name) for _ in range(count)]
    num_bytes = sum(matrix.num_bytes for matrix in matrices)
    one, eight, many = (torch.randn(num_rows, columns) for num_rows in (1, 8, 512))
    return (
        num_bytes / seconds(lambda: multiply(matrices, one)),
        num_bytes / seconds(lambda: multiply(matrices, eight)),
        2 * 512 * rows * columns / seconds(lambda: matrices[0].linear(many)),
    )


def multiply(matrices: list[Matrix], x: torch.Tensor) -> None:
    for matrix in matrices:
        matrix.linear(x)


def random_blocks(name: str, rows: int, columns: int) -> np.ndarray:
    """Random bytes, or random numbers of 16 bits: among random bytes there would be numbers too
    small for the fast path of a processor."""
    rng = np.random.default_rng(0)
    if name in ("F16", "BF16"):
        weights = rng.standard_normal((rows, columns), np.float32)
        return find_format(name).quantize(weights)
    return rng.integers(0, 256, (rows, find_format(name).row_bytes(columns)), np.uint8)


def seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


if __name__ == "__main__":
    main()
