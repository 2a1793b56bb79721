"""A failed allocation is an error that a person can mend."""

from __future__ import annotations

import pytest
import torch

from ivl.engine.model_runner import capacity_error
from ivl.errors import CapacityError


def test_a_real_failure_of_the_processors_allocator() -> None:
    with (
        pytest.raises(CapacityError, match="while encoding") as caught,
        capacity_error("encoding", "fewer tiles"),
    ):
        torch.empty(2**60)
    assert caught.value.hint == "fewer tiles"


def test_a_failure_of_an_accelerators_allocator() -> None:
    with pytest.raises(CapacityError), capacity_error("encoding", "fewer tiles"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_failure_of_our_own_kernels() -> None:
    with pytest.raises(CapacityError), capacity_error("encoding", "fewer tiles"):
        raise MemoryError("std::bad_alloc")


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), capacity_error("encoding", "fewer tiles"):
        torch.ones(2).view(3)
