"""How long many pages will take, and what that costs: before they are read.

A page costs its tiles, its prompt, and its share of the steps in which answers are written. A step
for n pages takes as long as for one, for the weights are read once, and for each further page as
long as reading a token of a prompt does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ivl.footprint.placement import GIB
from ivl.planner.planning import Report, plan
from ivl.planner.speed import Interval

TOKENS_OF_PAGE = 600
"""A page full of print in a language with Latin letters has 400 to 900 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """seconds: of all pages; None where the speed of this machine cannot be told, and `source` says
    why. num_bytes: of all memory that is taken. num_tiles: of a page, at most, which is what all
    are taken to have. num_tokens: those that a page is taken to have."""

    num_pages: int
    num_tiles: int
    num_tokens: int
    jobs: int
    seconds: Interval | None
    num_bytes: int
    fits: bool
    source: str
    price_per_hour: float | None = None

    @property
    def price(self) -> Interval | None:
        """Of all pages, in the currency of the price of an hour."""
        if self.seconds is None or self.price_per_hour is None:
            return None
        hours = self.price_per_hour / 3600
        seconds = self.seconds
        return Interval(
            low=seconds.low * hours, likely=seconds.likely * hours, high=seconds.high * hours
        )

    def to_dict(self) -> dict[str, object]:
        """For JSON."""

        def shown(interval: Interval | None) -> dict[str, float] | None:
            if interval is None:
                return None
            return {"low": interval.low, "likely": interval.likely, "high": interval.high}

        return {
            "pages": self.num_pages,
            "tiles_per_page": self.num_tiles,
            "tokens_per_page": self.num_tokens,
            "jobs": self.jobs,
            "seconds": shown(self.seconds),
            "memory_gib": round(self.num_bytes / GIB, 3),
            "fits": self.fits,
            "source": self.source,
            "price": shown(self.price),
        }


def estimate_run(
    model: str | os.PathLike[str],
    num_pages: int,
    *,
    jobs: int | None = None,
    mmproj: str | os.PathLike[str] | None = None,
    max_tiles: int | None = None,
    context: int | None = None,
    kv: str = "auto",
    num_tokens: int = TOKENS_OF_PAGE,
    price_per_hour: float | None = None,
) -> RunEstimate:
    """What reading so many pages on this machine takes, `jobs` of them at once; None: as many as
    fit, at most 16. The rest, and errors, as of `plan`; nothing is downloaded or loaded."""

    def planned(jobs: int) -> Report:
        return plan(
            model,
            mmproj=mmproj,
            context=context,
            kv="16bit" if kv in ("auto", "32bit") else kv,
            max_tiles=max_tiles,
            parallel=jobs,
        )

    tried = [jobs] if jobs is not None else [n for n in (16, 8, 4, 2, 1) if n <= num_pages] or [1]
    report, jobs = planned(tried[0]), tried[0]
    for fewer in tried[1:]:
        if report.fits:
            break
        report, jobs = planned(fewer), fewer
    at_once = min(jobs, max(1, num_pages))
    found, speed = report.plan, report.plan.speed
    work = found.setting.work
    rate, first, encode = (
        one.value for one in (speed.tokens_per_s, speed.first_token_s, speed.encode_s)
    )
    seconds = None
    if rate is not None and first is not None and encode is not None:

        def of_page(first_s: float, encode_s: float, tokens_per_s: float) -> float:
            row_s = max(0.0, first_s - encode_s) / max(1, work.prompt_tokens(found.subject.config))
            step_s = 1 / tokens_per_s + (at_once - 1) * row_s
            return first_s + num_tokens * step_s / at_once

        seconds = Interval(
            low=num_pages * of_page(first.low, encode.low, rate.high),
            likely=num_pages * of_page(first.likely, encode.likely, rate.likely),
            high=num_pages * of_page(first.high, encode.high, rate.low),
        )
    return RunEstimate(
        num_pages=num_pages,
        num_tiles=work.num_tiles,
        num_tokens=num_tokens,
        jobs=jobs,
        seconds=seconds,
        num_bytes=found.total_bytes,
        fits=report.fits,
        source=speed.first_token_s.source,
        price_per_hour=price_per_hour,
    )
