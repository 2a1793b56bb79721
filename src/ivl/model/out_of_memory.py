"""Turns a failed allocation, of torch's or of our kernels', into an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ivl.errors import CapacityError

CPU_MESSAGE = "can't allocate memory"
"""What torch's allocator for processors says; it has no class of its own for that."""


@contextmanager
def capacity_error(doing: str, hint: str) -> Iterator[None]:
    """Within it, running out of memory raises CapacityError: "The memory ran out while `doing`"."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:  # the second: of C++ and of numpy
        raise CapacityError(f"The memory ran out while {doing}.", hint) from error
    except RuntimeError as error:
        if CPU_MESSAGE not in str(error):
            raise
        raise CapacityError(f"The memory ran out while {doing}.", hint) from error
