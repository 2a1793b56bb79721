"""How far a run is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ivl.documents.results import PageResult, PageStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadProgress:
    """How far a run is: `num_done` of `num_pages` pages, of which `num_before` were done before it
    began. `statuses`: of all that are done."""

    num_documents: int
    num_pages: int
    num_done: int
    num_before: int
    elapsed_s: float
    statuses: Counter[PageStatus]

    @property
    def pages_per_s(self) -> float | None:
        """Of this run; None before the first page."""
        done = self.num_done - self.num_before
        return done / self.elapsed_s if done and self.elapsed_s > 0 else None

    @property
    def left_s(self) -> float | None:
        """Until all are done, at this speed."""
        rate = self.pages_per_s
        return None if rate is None else (self.num_pages - self.num_done) / rate


class Tally:
    """Counts pages of a run, and tells of it: `found` once, of how much there is to do, and
    `progress` after every page."""

    def __init__(
        self,
        found: Callable[[ReadProgress], None] | None,
        progress: Callable[[ReadProgress], None] | None,
    ) -> None:
        self._found, self._progress = found, progress
        self._num_documents = self._num_pages = self._num_before = 0
        self._began = time.monotonic()
        self.statuses: Counter[PageStatus] = Counter()

    def begin(self, num_documents: int, num_pages: int, before: Counter[PageStatus]) -> None:
        """A run over so many begins; `before`: of pages that are done already."""
        self._num_documents = num_documents
        self._num_pages, self._num_before = num_pages, before.total()
        self.statuses = Counter(before)
        self._began = time.monotonic()
        if self._found is not None:
            self._found(self.now())

    def count(self, status: PageStatus) -> None:
        self.statuses[status] += 1
        if self._progress is not None:
            self._progress(self.now())

    def counted(
        self, results: Iterator[tuple[int, PageResult]]
    ) -> Iterator[tuple[int, PageResult]]:
        """The same, each counted before it is passed on."""
        for number, result in results:
            self.count(result.status)
            yield number, result

    def now(self) -> ReadProgress:
        return ReadProgress(
            num_documents=self._num_documents,
            num_pages=self._num_pages,
            num_done=self.statuses.total(),
            num_before=self._num_before,
            elapsed_s=time.monotonic() - self._began,
            statuses=Counter(self.statuses),
        )
