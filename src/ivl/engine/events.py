"""What the engine says of a request while it answers: pieces, and exactly one ending."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from ivl.engine.answer import FinishReason, Timings, TokenLogprob
from ivl.errors import IvlError


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer (perhaps none), and the tokens that it is made of."""

    text: str
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete, or cut off, as `reason` says."""

    reason: FinishReason
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer. `error` None: a defect of ours, whose `cause` is there."""

    error: IvlError | None
    cause: BaseException | None = field(default=None, compare=False)


Event: TypeAlias = Piece | Ended | Failed
Listener: TypeAlias = Callable[[Event], None]
"""Called by whoever drives the engine; it must not block. Last comes one `Ended` or `Failed`."""


def hears_nothing(event: Event) -> None:
    """In the place of a listener that has heard the ending. It may hold the request, and the
    request it: in such a circle pictures stay until the collector comes."""
