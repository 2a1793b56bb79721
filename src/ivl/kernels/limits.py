"""What the machine can do at best, measured: the limits that kernels are held against."""

from __future__ import annotations

import time

import torch

from ivl.kernels import cpu

READ_BYTES = 1 << 28
"""More than a cache would hold for one of a few cores."""
ROUNDS = 6
PRODUCT_ROUNDS = 100_000


def read_bandwidth(rounds: int = ROUNDS) -> float:
    """Bytes a second that all threads together read from the processor's memory: the best of some
    passes over memory that was written before."""
    module = cpu.extension()
    if module is not None:
        return max(module.read_bandwidth(READ_BYTES) for _ in range(rounds))
    numbers = torch.ones(READ_BYTES // 4)

    def seconds() -> float:
        began = time.perf_counter()
        torch.dot(numbers, numbers)
        return time.perf_counter() - began

    return numbers.nbytes / min(seconds() for _ in range(rounds))


def byte_products(rounds: int = ROUNDS) -> float | None:
    """Operations a second in products of bytes whose operands are in registers, two for a product
    that is added up; None without the extension."""
    module = cpu.extension()
    if module is None:
        return None
    return max(module.byte_products(PRODUCT_ROUNDS) for _ in range(rounds))
