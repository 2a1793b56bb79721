"""The pool: every task runs once, on torch's threads and on our own."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch

import ivl
from ivl.kernels import cpu
from ivl.kernels.threads import join_pool_of_torch, use_threads

pytestmark = pytest.mark.skipif(cpu.loaded() is None, reason="the C++ extension was not built")


@pytest.fixture(params=["openmp", "own"])
def extension(request: pytest.FixtureRequest) -> Iterator:
    module = cpu.loaded()
    assert module is not None
    before = module.num_threads()
    if request.param == "own":
        module.use_openmp("")
    elif not join_pool_of_torch(module):
        pytest.skip("torch has no GNU OpenMP here")
    assert module.thread_pool() == request.param
    yield module
    use_threads(before)
    join_pool_of_torch(module)


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


def test_a_forked_process_has_a_pool_of_its_own() -> None:
    module = cpu.loaded()
    assert module is not None
    module.use_openmp("")
    module.set_num_threads(2)
    try:
        assert module.tasks_not_run_once(10) == 0
        context = multiprocessing.get_context("fork")
        child = context.Process(target=lambda: module.tasks_not_run_once(10))
        child.start()
        child.join(20)
        assert child.exitcode == 0
    finally:
        join_pool_of_torch(module)
        use_threads()


def test_loading_a_model_sets_the_threads_of_both() -> None:
    module = cpu.loaded()
    assert module is not None
    ivl.load("demo", context=512, threads=1)
    assert (torch.get_num_threads(), module.num_threads()) == (1, 1)
    use_threads()
