"""Memory that runs out, and other failures in what runs on several threads: an exception of the
caller, and threads that are as good as before."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from ivl.kernels import cpu
from ivl.kernels.dense import DenseMatrix, Norm, Rows
from ivl.kernels.matrix import CpuMatrix
from ivl.model.cache import KVCache, Segment
from ivl.model.cpu_decoder import use_fused_layers
from tests.kernels.random_blocks import random_blocks
from tests.model.test_cache import CONFIG
from tests.random_model import random_model

pytestmark = pytest.mark.skipif(cpu.loaded() is None, reason="the C++ extension was not built")


@pytest.mark.parametrize("phases", [0, 1, 3])
@pytest.mark.parametrize("failing", [0, 7, 99])
def test_the_exception_of_a_task_is_the_callers(
    extension: ModuleType, phases: int, failing: int
) -> None:
    for _ in range(20):
        with pytest.raises(ValueError, match=f"task {failing} failed"):
            extension.tasks_not_run_once(100, failing, phases)
        assert extension.tasks_not_run_once(100) == 0


def products(extension: ModuleType) -> torch.Tensor:
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(1))
    matrix = CpuMatrix(random_blocks("Q4_K", 700, 512), "Q4_K", extension)
    return matrix.linear(x)


def float_products(extension: ModuleType) -> torch.Tensor:
    x, weight = torch.ones(40, 300), torch.linspace(-1, 1, 300 * 500).view(500, 300)
    out = torch.empty(40, 500)
    extension.float_matmul(weight, x, None, out)
    return out


def dense_products(extension: ModuleType) -> torch.Tensor:
    x, weight = torch.linspace(-1, 1, 70 * 100).view(70, 100), torch.eye(100)
    norm = Norm(kind="rms", weight=torch.ones(100), bias=None, eps=1e-6)
    matrix = DenseMatrix(weight, None, "int8")
    return matrix.multiply(Rows("int8").fill(x, norm), torch.empty(70, 100))


def layers(extension: ModuleType) -> torch.Tensor:
    torch.manual_seed(0)
    model = random_model(CONFIG, dtype=torch.float32)
    assert use_fused_layers(model.decoder)
    cache = KVCache(model.new_store(40), range(40))
    ids = torch.arange(700) % 101
    with torch.inference_mode():
        first = model.extend(model.decoder.embed(ids), [Segment(cache, 700)], [1])
        return torch.cat(
            [first, model.extend(model.decoder.embed(ids[:1]), [Segment(cache, 1)], [1])]
        )


@pytest.mark.parametrize("compute", [products, float_products, dense_products, layers])
def test_each_allocation_may_fail(
    extension: ModuleType, compute: Callable[[ModuleType], torch.Tensor]
) -> None:
    """One after the other, until none is left; and what is computed then is what it was before."""
    expected = compute(extension)
    outcomes: list[str] = []

    def attempt(after: int) -> None:
        extension.fail_allocation(after)
        try:
            compute(extension)
        except MemoryError:
            outcomes.append("failed")
        else:
            outcomes.append("went well")
        finally:
            extension.fail_allocation(-1)

    while not outcomes or outcomes[-1] == "failed":
        assert len(outcomes) < 1000
        # Threads that are new have no memory yet.
        extension.set_num_threads(2 + len(outcomes) % 2)
        thread = threading.Thread(target=attempt, args=(len(outcomes),))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        if len(outcomes) % 5 == 0:
            assert torch.equal(compute(extension), expected)
    assert len(outcomes) > 1
    assert torch.equal(compute(extension), expected)


OUT_OF_MEMORY = """
import resource, sys
import torch
from ivl.kernels import cpu
module = cpu.loaded()
if sys.argv[1] == "own":
    module.use_openmp("")
module.set_num_threads(2)
x, weight = torch.ones(600_000, 16), torch.ones(128, 16)
from ivl.kernels import matrix
matrix.ours_is_faster = lambda dtype: True
used = 4096 * int(open("/proc/self/statm").read().split()[0])
small = torch.ones(9, 16)
before = matrix.float_linear(small, weight)
resource.setrlimit(resource.RLIMIT_AS, (used + (370 << 20),) * 2)
try:
    matrix.float_linear(x, weight)
except MemoryError:
    same = torch.equal(matrix.float_linear(small, weight), before)
    print("MemoryError", same, module.tasks_not_run_once(100))
"""
"""The results and the rearranged x, 330 MB, have room; the 73 MB that a thread needs do not."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("pool", ["openmp", "own"])
def test_memory_that_the_system_does_not_have(pool: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, pool], capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "MemoryError True 0\n", done.stderr
