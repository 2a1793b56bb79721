"""The pool: every task runs once, on torch's threads and on our own."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import replace

import pytest
import torch

import ivl
from ivl.kernels import cpu
from ivl.kernels.cpu import join_pool_of_torch, use_threads
from ivl.model.cache import KVCache, Segment
from ivl.model.cpu_decoder import use_fused_layers
from tests.model.test_cache import CONFIG
from tests.random_model import random_model

pytestmark = pytest.mark.skipif(cpu.loaded() is None, reason="the C++ extension was not built")


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_task_runs_once(extension, threads: int) -> None:
    assert use_threads(threads) == threads
    for num_tasks in (0, 1, 2, 7, 1000):
        assert extension.tasks_not_run_once(num_tasks) == 0
        torch.ones(300, 300) @ torch.ones(300, 300)  # torch's own use of the pool in between


def test_threads_of_the_program_may_compute_at_once(extension) -> None:
    use_threads(3)
    wrong: list[int] = []
    threads = [
        threading.Thread(target=lambda: wrong.append(extension.tasks_not_run_once(500)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0, 0, 0, 0]


def test_a_forked_process_has_a_pool_of_its_own(extension) -> None:
    """GNU's OpenMP would wait in it for threads that only the parent has."""
    use_threads(2)
    assert extension.tasks_not_run_once(10) == 0

    def compute() -> None:
        assert extension.thread_pool() == "own"
        assert not join_pool_of_torch(extension)
        assert extension.tasks_not_run_once(10) == 0

    child = multiprocessing.get_context("fork").Process(target=compute)
    child.start()
    child.join(20)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0


def test_the_number_of_threads_may_change_while_layers_compute(extension) -> None:
    """Threads that divided a product by different numbers would compute parts of it twice, and
    others not at all."""
    torch.manual_seed(0)
    # So many outputs that their tasks depend on the number of threads.
    wide = replace(CONFIG, decoder=replace(CONFIG.decoder, intermediate_size=4096))
    model = random_model(wide, dtype=torch.float32)
    assert use_fused_layers(model.decoder)
    store = model.new_store(8)
    use_threads(3)
    x = model.decoder.embed(torch.arange(5))
    computing = True

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return model.decoder.extend(x, [Segment(KVCache(store, range(8)), 5)])

    def change() -> None:
        count = 0
        while computing:
            extension.set_num_threads(2 + 2 * (count := (count + 1) % 2))
            time.sleep(1e-5)

    expected = run()
    changing = threading.Thread(target=change)
    changing.start()
    try:
        results = [run() for _ in range(100)]
    finally:
        computing = False
        changing.join()
    assert all(torch.equal(result, expected) for result in results)


def test_loading_a_model_sets_the_threads_of_both() -> None:
    module = cpu.loaded()
    assert module is not None
    ivl.load("demo", context=512, threads=1)
    assert (torch.get_num_threads(), module.num_threads()) == (1, 1)
    use_threads()
