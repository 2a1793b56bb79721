"""The extension with each of its pools of threads, for the tests of its threads and failures."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from ivl.kernels import cpu
from ivl.kernels.cpu import join_pool_of_torch, use_threads


@pytest.fixture(params=["openmp", "own"])
def extension(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """With three threads; left as it was found."""
    module = cpu.loaded()
    assert module is not None
    before = module.num_threads()
    if request.param == "own":
        module.use_openmp("")
    elif not join_pool_of_torch(module):
        pytest.skip("torch has no GNU OpenMP here")
    assert module.thread_pool() == request.param
    use_threads(3)
    yield module
    module.fail_allocation(-1)
    use_threads(before)
    join_pool_of_torch(module)
