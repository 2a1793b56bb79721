"""How far a run over many pages is, and what it has come to."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from ivl.cli.options import ModelChoice, PageChoice, RunChoice
from ivl.cli.terminal import Status, print_json
from ivl.cli.words import clean, spoken
from ivl.documents.inputs import told_skipped
from ivl.documents.job import RunSummary
from ivl.documents.progress import ReadProgress
from ivl.documents.results import STATUSES, WITHOUT_TEXT, PageResult
from ivl.errors import IvlError
from ivl.planner.run import RunEstimate, estimate_run
from ivl.spelling import counted

LINE_EVERY_S = 30
"""Where stderr is no terminal, a line so often."""
MOST_PROBLEMS = 20
MANY_PAGES = 10
EXIT_SOME_FAILED = 2
"""The exit code of a run in which a page has failed."""


class PageProgress:
    """One line on a terminal, that changes; elsewhere plain lines now and then."""

    def __init__(
        self, status: Status, estimate: Callable[[int], RunEstimate] | None = None
    ) -> None:
        self.status, self._estimate = status, estimate
        self._told_at = time.monotonic()

    def begin(self, progress: ReadProgress) -> None:
        """What there is to do, and how long that is going to take, if it may be long."""
        failed = sum(progress.statuses[status] for status in WITHOUT_TEXT)
        if num_done := progress.num_before - failed:
            self.status.note(f"Done already: {num_done} of {counted(progress.num_pages, 'page')}.")
        num_left = progress.num_pages - progress.num_before
        if self._estimate is not None and num_left >= MANY_PAGES and not self.status.quiet:
            # A model of which nothing can be told beforehand says so when it is loaded.
            with suppress(IvlError):
                self.status.note(estimate_text(self._estimate(num_left)))

    def show(self, progress: ReadProgress) -> None:
        """A page is done."""
        if progress.num_pages == 1:
            return
        text = progress_text(progress)
        self.status.show(text)
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self._told_at >= LINE_EVERY_S:
            self._told_at = now
            self.status.note(text)


def estimator(
    choice: ModelChoice, which: PageChoice, run: RunChoice, *, max_tiles: int | None, tokens: int
) -> Callable[[int], RunEstimate]:
    """Tells what so many pages take, of which each has so many tokens."""
    return functools.partial(
        estimate_run,
        choice.model,
        mmproj=choice.mmproj,
        jobs=which.jobs,
        max_tiles=max_tiles,
        context=choice.context,
        kv=choice.kv,
        price_per_hour=run.price,
        num_tokens=tokens,
    )


def progress_text(progress: ReadProgress) -> str:
    """Pages done, pages a second, time left, and how many have failed."""
    parts = [f"{progress.num_done} of {counted(progress.num_pages, 'page')}"]
    if progress.pages_per_s is not None and progress.left_s is not None:
        parts.append(f"{progress.pages_per_s:.2g} pages/s")
        if progress.num_done < progress.num_pages:
            parts.append(f"{duration(progress.left_s)} left")
    failed = progress.statuses["failed"] + progress.statuses["locked"]
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts)


def estimate_text(estimate: RunEstimate) -> str:
    """What a run is going to take, in a sentence."""
    pages, tiles = counted(estimate.num_pages, "page"), counted(estimate.num_tiles, "tile")
    about = (
        f"{pages} of up to {tiles} and some {estimate.num_tokens} tokens, {estimate.jobs} at once: "
        f"{estimate.num_bytes / 2**30:.1f} GiB of memory"
    )
    if not estimate.fits:
        about += ", which do not fit"
    if estimate.seconds is None:
        return f"{about}. How long it takes cannot be told: {estimate.source}"
    low, high = duration(estimate.seconds.low), duration(estimate.seconds.high)
    text = f"{about}, {low} to {high} (likely {duration(estimate.seconds.likely)})"
    if (price := estimate.price) is not None:
        text += f", {price.low:.2f} to {price.high:.2f} (likely {price.likely:.2f}) to pay"
    return text


@contextmanager
def told_when_ended(status: Status) -> Iterator[None]:
    """Within it, who ends a run that writes files with Ctrl-C is told what comes of it."""
    try:
        yield
    except KeyboardInterrupt:
        status.note("Ended. What was read is kept: the same command goes on.")
        raise


def print_plan(estimate: Callable[[int], RunEstimate], json: bool, progress: ReadProgress) -> None:
    """For --dry-run: what there is to do, and what it takes."""
    num_left = progress.num_pages - progress.num_done
    planned = estimate(num_left)
    if json:
        counts = {"documents": progress.num_documents, "done": progress.num_done}
        print_json({**counts, **planned.to_dict()})
        return
    documents = counted(progress.num_documents, "document")
    done = f", {progress.num_done} of them done already" if progress.num_done else ""
    print(f"{documents}, {counted(progress.num_pages, 'page')}{done}")
    if num_left:
        print(estimate_text(planned))


def print_summary(summary: RunSummary, file: TextIO) -> None:
    """The table at the end of a run: pages by status, and those that did not come out whole."""

    def say(text: str) -> None:
        print(clean(text), file=file)

    say(f"{counted(summary.num_documents, 'document')}, {counted(summary.num_pages, 'page')}")
    for status in STATUSES:
        if summary.statuses[status]:
            say(f"  {status:<12}{summary.statuses[status]:>7}")
    if summary.num_left:
        say(f"  {'to be read':<12}{summary.num_left:>7}")
    for page in summary.problems[:MOST_PROBLEMS]:
        say(f"{page.status}: {_problem(page)}")
    if told := told_skipped(summary.skipped):
        say(told)
    for name in summary.left_alone:
        say(f"{name} is of other settings, and stays, since it was changed by hand")
    more = len(summary.problems) - MOST_PROBLEMS
    if more > 0:
        say(f"and {counted(more, 'page')} more; --status --json lists all")


def _problem(page: PageResult) -> str:
    """Which page it is, and why; messages mostly name it themselves."""
    why = "" if page.error is None else spoken(page.error.message)
    return why if page.title in why else f"{page.title}: {why}" if why else page.title


def duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
