"""What a plan asks of a program that is not ivl."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from ivl.footprint.placement import Program
from ivl.kv import KVType
from ivl.planner.command import Words
from ivl.planner.plan import Plan, Subject


class Rival(Program, ABC):
    """Keeps weights as they are in their files, and is run by commands of its own."""

    __slots__ = ()

    def require(self, subject: Subject, vision: str | None, kv: KVType) -> None:
        """UnsupportedError for files, a tower's type or a cache that the program cannot have."""

    @abstractmethod
    def commands(self, plan: Plan) -> list[Words]:
        """What is to be typed, in order."""

    @abstractmethod
    def notes(self, plan: Plan) -> Iterator[str]:
        """What is to be known of this program, this model and these devices."""
