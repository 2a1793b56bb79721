"""Reading a page: what is asked of the model, and what is tried when that does not come out well.

- A loop is ended as soon as it is sure, and the page read with another number of tiles, then by
  halves, then with a temperature. No penalty is used: tables repeat what they have to.
- An answer for which the context had no room is read by halves.
- A page whose lines seem to run down it, or in whose text the model has little confidence, is
  probed in all four directions: a square of it is read for a few tokens, and where another
  direction gives clearly more confidence, the page is turned.

The best attempt is kept: a complete one before one that was cut off, before one with a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, cast

import numpy as np
from PIL import Image

from ivl.config import ModelConfig
from ivl.documents.looking import ReadSettings, Seen, draw, failed, look_at, most_inked, turn
from ivl.documents.loops import repeated_tail
from ivl.documents.page_talks import PageAnswer, PageQuestion, PageTalks, Reader, Talk
from ivl.documents.results import Attempt, PageResult, PageStatus
from ivl.documents.text_layer import difference
from ivl.documents.views import PageView, view_pages
from ivl.engine.answer import Answer, TokenLogprob, joined
from ivl.engine.options import GenerationOptions, schema_text
from ivl.errors import IvlError
from ivl.json_values import JsonObject
from ivl.pages.reader import Page

RETRY_TEMPERATURE: Final = 0.4
DOUBTFUL_LOGPROB: Final = -0.2
"""The mean logarithm of the probability of a page's tokens, below which its direction is probed.
The bundled model has 0 to -0.07 on 13 pages held upright, -0.3 to -0.55 on their head, -0.6 to -1.1
on their side."""
TURN_MARGIN: Final = 0.15
"""By so much a direction must be better."""
PROBE_TOKENS: Final = 24
DIRECTIONS: Final = (0, 90, 180, 270)
_WHOLE: Final = "whole page"
_OTHER_TILES: Final = "other tiles"
_HALVES: Final = "halves"
_WARMER: Final = f"temperature {RETRY_TEMPERATURE}"
_GAP_FROM, _GAP_TO = 0.4, 0.6
"""Between these parts of its height a page is cut into halves."""


class Watcher(Protocol):
    """Who sees pages while they are read; they take turns where several are read at once."""

    def begins(self, view: PageView) -> None:
        """The model is going to read this page; it may be the thread of the pages that says so."""

    def hears(self, view: PageView, text: str) -> None:
        """So much more of its text is there."""

    def begins_again(self, view: PageView, how: str) -> None:
        """The page is read once more, from its beginning."""


def read_batch(
    pages: Sequence[Page],
    load: Callable[[], Reader],
    settings: ReadSettings,
    *,
    jobs: int | None = None,
    watcher: Watcher | None = None,
) -> Iterator[tuple[int, PageResult]]:
    """What comes of each page, with its number among `pages`, from 0, as soon as it is known; load
    and jobs as of `PageTalks`."""
    talks = PageTalks[PageResult](
        load, settings, jobs=jobs, most_pages=len(pages), schema=_schema(settings)
    )

    def begin(page: Page) -> Talk[PageResult] | PageResult:
        seen = look_at(page, settings)
        if isinstance(seen, PageResult):
            return seen
        return PageReading(seen, settings, lambda: talks.config, watcher).talk()

    def fail(number: int, error: IvlError) -> PageResult:
        page = pages[number]
        result = PageResult(path=page.name, number=page.number, count=page.count, status="ok")
        return failed(replace(result, label=page.label), page, error)

    return talks.run((partial(begin, page) for page in pages), fail)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What an attempt has come to."""

    how: str
    status: PageStatus
    text: str
    answer: Answer

    @property
    def rank(self) -> tuple[int, int]:
        order: tuple[PageStatus, ...] = ("repeated", "truncated", "ok")
        return order.index(self.status), len(self.text)


class PageReading:
    """A page that is being read. `config`: of the model, asked for when the talk begins."""

    def __init__(
        self,
        seen: Seen,
        settings: ReadSettings,
        config: Callable[[], ModelConfig],
        watcher: Watcher | None = None,
    ) -> None:
        self._seen, self._settings, self._config, self._watcher = seen, settings, config, watcher
        self._turned = 0
        self._view: PageView | None = None

    def talk(self) -> Talk[PageResult]:
        """All that is asked about the page."""
        # The picture is not kept while the model reads.
        image, self._seen = self._seen.image, replace(self._seen, image=_NOTHING)
        if self._seen.is_turned:
            self._turned = yield from self._best_direction(image)
            image = turn(image, self._turned)
        self._show(image)
        if self._watcher is not None and self._view is not None:
            self._watcher.begins(self._view)
        questions = [self._question(image)]
        del image
        first = yield from self._attempt(_WHOLE, questions)
        if self._is_doubtful(first):
            first = yield from self._turned_attempt(first)
        outcomes = [first]
        for how in self._ways(first):
            try:
                questions = self._again(how)
                if not questions:
                    continue
                self._begin_again(how)
                outcomes.append((yield from self._attempt(how, questions)))
            except IvlError:
                continue  # this way is not open to this page
            if outcomes[-1].status == "ok":
                break
        return self._result(outcomes)

    def _turned_attempt(
        self, first: _Outcome
    ) -> Generator[list[PageQuestion], list[PageAnswer], _Outcome]:
        """The page as it reads best; `first`, where that is how it is held."""
        view = self._view
        try:
            image = self._drawn()
            self._turned = yield from self._best_direction(image)
            if not self._turned:
                return first
            image = turn(image, self._turned)
            self._show(image)
            self._begin_again(f"turned by {self._turned} degrees")
            return (yield from self._attempt(_WHOLE, [self._question(image)]))
        except IvlError:  # what was read first is there
            self._turned, self._view = 0, view
            return first

    def _show(self, image: Image.Image) -> None:
        """How the model is going to see the page."""
        [self._view] = view_pages(
            [self._seen.page], [image.size], self._config(), self._settings.max_tiles
        )

    def _begin_again(self, how: str) -> None:
        if self._watcher is not None and self._view is not None:
            self._watcher.begins_again(self._view, how)

    def _drawn(self) -> Image.Image:
        return draw(self._seen.page, self._settings, self._turned)

    def _question(
        self,
        image: Image.Image,
        max_tiles: int | None = None,
        options: GenerationOptions | None = None,
    ) -> PageQuestion:
        settings, watcher, view = self._settings, self._watcher, self._view
        hears = None if watcher is None or view is None else partial(watcher.hears, view)
        return PageQuestion(
            image=image,
            question=settings.question,
            schema=_schema(settings),
            max_tiles=max_tiles,
            options=options,
            # That of the tokens themselves, without another number wanted, tells confidence.
            num_logprobs=0 if settings.rotate and settings.logprobs is None else settings.logprobs,
            ends_loops=settings.retry,
            hears=hears,
        )

    def _attempt(
        self, how: str, questions: list[PageQuestion]
    ) -> Generator[list[PageQuestion], list[PageAnswer], _Outcome]:
        answers = yield questions
        return _judge(how, answers)

    def _best_direction(
        self, image: Image.Image
    ) -> Generator[list[PageQuestion], list[PageAnswer], int]:
        """By how many degrees the page has to be turned, as far as the model is surer of that."""
        square = most_inked(image)
        question = replace(
            self._question(square),
            max_tiles=1,
            options=replace(self._settings.generation, max_tokens=PROBE_TOKENS),
            schema=None,
            hears=None,
            num_logprobs=0,
        )
        try:
            answers = yield [replace(question, image=turn(square, d)) for d in DIRECTIONS]
        except IvlError:
            return 0
        sure = [_confidence(_tokens(answer)) for answer in answers]
        best = max(range(len(sure)), key=lambda index: sure[index])
        return DIRECTIONS[best] if sure[best] >= sure[0] + TURN_MARGIN else 0

    def _is_doubtful(self, outcome: _Outcome) -> bool:
        """Whether the page may be held the wrong way: the model is not sure of what it reads."""
        tokens = outcome.answer.logprobs
        is_asked = self._settings.rotate and not self._seen.is_turned
        return is_asked and bool(tokens) and _confidence(tokens) < DOUBTFUL_LOGPROB

    def _ways(self, outcome: _Outcome) -> list[str]:
        """In which other ways the page may be read."""
        if not self._settings.retry or outcome.status == "ok":
            return []
        # Half a page does not have the form of a whole one.
        halves = [] if self._settings.schema is not None else [_HALVES]
        if outcome.status == "truncated":
            # Whoever says how long an answer may be wants no more.
            return [] if self._settings.generation.max_tokens else halves
        return [_OTHER_TILES, *halves, _WARMER]

    def _again(self, how: str) -> list[PageQuestion]:
        """The questions of a way; none where the page is too small for it."""
        image = self._drawn()
        if how == _HALVES:
            return [self._question(half) for half in _halves(image)]
        if how == _WARMER:
            return [self._question(image, options=_warmer(self._settings.generation))]
        assert self._view is not None
        num_tiles = self._view.grid.num_tiles
        return [self._question(image, max_tiles=num_tiles // 2 if num_tiles > 1 else 2)]

    def _result(self, outcomes: list[_Outcome]) -> PageResult:
        best = max(outcomes, key=lambda outcome: outcome.rank)
        attempts = tuple(
            Attempt(how=one.how, status=one.status, num_tokens=len(one.answer.tokens))
            for one in outcomes
        )
        wants_logprobs = self._settings.logprobs is not None
        result = replace(
            self._seen.result,
            status=best.status,
            text=best.text,
            answer=best.answer if wants_logprobs else replace(best.answer, logprobs=()),
            view=self._view,
            turned=self._turned,
            attempts=attempts if len(attempts) > 1 else (),
        )
        return result if self._seen.layer is None else _compared(result, self._seen.layer)


def _schema(settings: ReadSettings) -> JsonObject | None:
    return None if settings.schema is None else cast(JsonObject, schema_text(settings.schema))


_NOTHING: Final = Image.new("RGB", (1, 1))


def _judge(how: str, answers: list[PageAnswer]) -> _Outcome:
    """What the parts of an attempt come to together: as the worst of them ended."""
    statuses, parts = list[PageStatus](), list[Answer]()
    for answer in answers:
        text, status = _status(answer)
        statuses.append(status)
        assert answer.answer is not None
        parts.append(replace(answer.answer, text=text))
    worst: tuple[PageStatus, ...] = ("repeated", "truncated", "ok")
    return _Outcome(
        how=how,
        status=next(status for status in worst if status in statuses),
        text="\n".join(part.text for part in parts if part.text),
        answer=parts[0] if len(parts) == 1 else joined(parts),
    )


def _status(answer: PageAnswer) -> tuple[str, PageStatus]:
    """The text of an answer, with what repeats at its end once, and how it ended."""
    if answer.is_whole and not answer.is_loop:
        return answer.text, "ok"
    loop = repeated_tail(answer.text)
    if loop is None:
        return answer.text, "truncated"
    return loop.cut(answer.text), "repeated"


def _tokens(answer: PageAnswer) -> Sequence[TokenLogprob]:
    return () if answer.answer is None else answer.answer.logprobs


def _confidence(tokens: Iterable[TokenLogprob]) -> float:
    """The mean of the logarithms of their probabilities."""
    logprobs = [token.logprob or 0.0 for token in tokens]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def _compared(result: PageResult, layer: str) -> PageResult:
    """With a note on how the reading and the PDF's own text differ."""
    if not layer:
        return replace(result, notes=(*result.notes, "The page has no text layer."))
    found = difference(result.text, layer)
    note = f"{found.share:.0%} of reading and text layer differ."
    if found.examples:
        pairs = ", ".join(f"{read!r} for {said!r}" for read, said in found.examples)
        note = f"{note[:-1]}: read {pairs}."
    return replace(result, layer_difference=found.share, notes=(*result.notes, note))


def _halves(image: Image.Image) -> list[Image.Image]:
    """The upper and the lower half of a page, cut where there is least to be cut."""
    width, height = image.size
    first, last = int(height * _GAP_FROM), int(height * _GAP_TO)
    if last - first < 2:
        return []
    band = np.asarray(image.crop((0, first, width, last)).convert("L"), dtype=np.int16)
    steps = np.abs(np.diff(band, axis=1)).sum(axis=1, dtype=np.int64)
    # Of rows that are alike, such as those of a gap, the one nearest to the middle.
    from_middle = np.abs(np.arange(len(steps)) - len(steps) // 2)
    row = first + int(np.lexsort((from_middle, steps))[0])
    return [image.crop((0, 0, width, row)), image.crop((0, row, width, height))]


def _warmer(options: GenerationOptions) -> GenerationOptions:
    """With chance in it, which can be repeated."""
    warmer = max(RETRY_TEMPERATURE, options.temperature)
    return replace(options, temperature=warmer, seed=0 if options.seed is None else options.seed)
