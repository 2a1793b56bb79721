"""Failures end the request that they belong to, and nobody else's answer.

This is the one place where every exception is caught: whatever goes wrong while a request is
computed, chosen for or written down becomes its ending. A fault of the device itself is let
through, for after it nothing that the device computes can be trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch

T = TypeVar("T")
log = logging.getLogger("ivl.engine")

Fail = Callable[[BaseException], None]
"""Ends a request without an answer."""

DEVICE_FAULTS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert", "MPS backend")
"""What RuntimeErrors of torch's say when the device has failed; some have no class of their own."""


def is_device_fault(error: BaseException) -> bool:
    """Whether the device itself has failed. Memory that has run out is no such fault."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)  # from torch 2.8 on
    if accelerator is not None and isinstance(error, accelerator):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in DEVICE_FAULTS)


def _is_contained(error: BaseException) -> bool:
    """Whether it is kept from the others: every exception but a fault of the device, and what a
    library in Rust raises when it has failed, which derives from BaseException."""
    is_failure = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return is_failure and not is_device_fault(error)


def log_failure(error: BaseException) -> None:
    """Writes a defect down, for those who run a server."""
    log.error("a request has failed", exc_info=error)


class Contained:
    """What `contained` returns. A class, for every token of every answer passes through one."""

    __slots__ = ("_doing", "_fail")

    def __init__(self, fail: Fail, doing: str) -> None:
        self._fail, self._doing = fail, doing

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None or not _is_contained(error):
            return False
        error.add_note(f"while {self._doing}")
        self._fail(error)
        return True


def contained(fail: Fail, doing: str) -> Contained:
    """Whatever is raised within it, but for a fault of the device, is handed to `fail`, with a note
    of what was being done."""
    return Contained(fail, doing)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt has ended with."""

    error: BaseException

    def end(self, fail: Fail, doing: str) -> None:
        """Ends the request whose attempt it was, as `contained` does."""
        with contained(fail, doing):
            raise self.error


def attempt(compute: Callable[[], T]) -> T | Failure:
    """The result, or what was raised instead, but for a fault of the device."""
    try:
        return compute()
    except BaseException as error:
        if not _is_contained(error):
            raise
        return Failure(error)
