"""Pages read by a model, many at a time.

Pages are drawn and cut a little ahead, in a thread of their own, while the engine encodes, reads
and writes for those that are open: as many as `jobs`, each of which joins and leaves at any step.
A page that ends badly is read again in other ways while the others go on:

- a loop is ended as soon as it is sure, and the page read with another number of tiles, then by
  halves, then with a temperature. No penalty is used: tables repeat what they have to;
- an answer for which the context had no room is read by halves;
- a page whose lines seem to run down it, or in whose text the model has little confidence, is
  probed in all four directions: a square of it is read for a few tokens, and where another
  direction gives clearly more confidence, the page is turned.

The best attempt is kept: a complete one before one that was cut off, before one with a loop.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol

import numpy as np
from PIL import Image

from ivl.config import ModelConfig
from ivl.documents.looking import ReadSettings, Seen, draw, failed, look_at, most_inked, turn
from ivl.documents.loops import LoopWatch, repeated_tail
from ivl.documents.results import Attempt, PageResult, PageStatus
from ivl.documents.text_layer import difference
from ivl.documents.views import PageView, view_pages
from ivl.engine.answer import Answer, Ended, Event, Failed, Piece, TokenLogprob, joined
from ivl.engine.containment import Failure, attempt, is_device_fault, log_failure
from ivl.engine.engine import Engine, EngineLimits
from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions, schema_text
from ivl.engine.prompt_builder import LIMIT_OPTION
from ivl.engine.request import EngineRequest, RunningRequest
from ivl.errors import IvlError
from ivl.footprint.workload import TEXT_TOKENS
from ivl.json_values import JsonObject
from ivl.loading import tokens_that_fit
from ivl.pages.reader import Page
from ivl.prompt.template import user_message
from ivl.prompt.tiles import Grid, num_tiles_with_thumbnail

MOST_JOBS: Final = 16
"""Pages at once, where nobody says how many; beyond, a processor gains little."""
ANSWER_TOKENS: Final = 1024
"""Tokens that a full page is taken to have, when room is made for several."""
MOST_AHEAD: Final = 8
"""Pages that are drawn ahead: a page of 13 tiles takes 8 MB."""
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
_PROBE: Final = "probe"
_GAP_FROM, _GAP_TO = 0.4, 0.6
"""Between these parts of its height a page is cut into halves."""


class Watcher(Protocol):
    """Who sees pages while they are read; they take turns where several are read at once."""

    def begins(self, view: PageView) -> None:
        """The model is going to read this page."""

    def hears(self, view: PageView, text: str) -> None:
        """So much more of its text is there."""

    def begins_again(self, view: PageView, how: str) -> None:
        """The page is read once more, from its beginning."""


class Reader(Protocol):
    """What pages are read with; `ivl.Model` is one."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def facts(self) -> JsonObject | None: ...


@dataclass(slots=True)
class _Part:
    """One request of an attempt."""

    running: RunningRequest | None = None
    watch: LoopWatch = field(default_factory=LoopWatch)
    tokens: list[TokenLogprob] = field(default_factory=list)
    is_loop: bool = False
    ended: Ended | None = None
    failed: Failed | None = None

    @property
    def has_ended(self) -> bool:
        return self.ended is not None or self.failed is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What an attempt has come to."""

    status: PageStatus
    text: str = ""
    answer: Answer | None = None
    error: IvlError | None = None

    @property
    def rank(self) -> tuple[int, int]:
        order: tuple[PageStatus, ...] = ("failed", "repeated", "truncated", "ok")
        return order.index(self.status), len(self.text)


@dataclass(slots=True)
class _Reading:
    """A page that is being read."""

    number: int
    page: Page
    result: PageResult
    layer: str | None
    view: PageView
    parts: list[_Part]
    how: str = _WHOLE
    is_probed: bool = False
    left: list[str] | None = None
    """Ways that have not been tried; None while the first attempt goes on."""
    outcomes: list[tuple[str, _Outcome]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A page whose first request is made."""

    seen: Seen
    view: PageView
    requests: list[EngineRequest]


class PageBatch:
    """Reads pages with one engine. Use it once."""

    def __init__(
        self,
        load: Callable[[], Reader],
        settings: ReadSettings,
        *,
        jobs: int | None = None,
        most_pages: int | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """load: gives the model, when there is a page for it. jobs: pages at once; None: as many as
        memory holds, at most `MOST_JOBS`. most_pages: that are going to come, if that is known."""
        self._load, self._settings, self._watcher = load, settings, watcher
        self._jobs, self._most_pages = jobs, most_pages
        self._engine: Engine | None = None
        self._grammar: Grammar | None = None
        self._events: deque[tuple[_Reading, _Part, Event]] = deque()
        self._open: dict[int, _Reading] = {}

    def run(self, pages: Iterable[Page | PageResult]) -> Iterator[tuple[int, PageResult]]:
        """What comes of each page, with its number among the pages, from 0, as soon as it is known.
        What is a result already passes through."""
        coming, ahead = enumerate(pages), deque[tuple[int, Future[Seen | _Ready | PageResult]]]()
        with ThreadPoolExecutor(1, thread_name_prefix="ivl-pages") as thread:
            try:
                are_all = False
                while True:
                    while len(ahead) < min(self._jobs or MOST_JOBS, MOST_AHEAD):
                        number, page = next(coming, (0, None))
                        if page is None:
                            are_all = True
                            break
                        ahead.append((number, thread.submit(self._prepare, page)))
                    yield from self._take(ahead)
                    if self._open:
                        yield from self._step()
                    elif are_all and not ahead:
                        return
            finally:
                for _, future in ahead:
                    future.cancel()
                for reading in list(self._open.values()):
                    self._cancel(reading)

    def _take(
        self, ahead: deque[tuple[int, Future[Seen | _Ready | PageResult]]]
    ) -> Iterator[tuple[int, PageResult]]:
        """Begins with pages that are drawn, as far as there are seats; waits for one only where
        nothing else is to be done."""
        while ahead and len(self._open) < (self._jobs or MOST_JOBS):
            number, future = ahead[0]
            if self._open and not future.done():
                return
            prepared = future.result()
            ahead.popleft()
            if isinstance(prepared, Seen):
                self._start_engine()
                prepared = self._make_ready(prepared)
            if isinstance(prepared, PageResult):
                yield number, prepared
                continue
            reading = _Reading(
                number,
                prepared.seen.page,
                prepared.seen.result,
                prepared.seen.layer,
                prepared.view,
                [],
            )
            self._open[number] = reading
            if self._watcher is not None:
                self._watcher.begins(prepared.view)
            if prepared.seen.is_turned:
                reading.is_probed, reading.how = True, _PROBE
            self._submit(reading, prepared.requests)

    def _start_engine(self) -> None:
        """Loads the model, and takes the place that so many pages need."""
        if self._engine is not None:
            return
        model = self._load()
        engine, settings = model.engine, self._settings
        jobs = min(self._jobs or MOST_JOBS, self._most_pages or MOST_JOBS)
        if jobs > 1:
            limits = EngineLimits(max_sequences=jobs)
            per_page = min(engine.context, self._page_tokens(engine.config))
            wanted, held = jobs * engine.context, tokens_that_fit(engine, limits)
            kept = wanted if held is None else min(wanted, max(held, engine.context))
            if self._jobs is None:
                jobs = max(1, min(jobs, kept // per_page))
            if jobs > 1:
                engine = engine.with_limits(replace(limits, max_sequences=jobs, kv_tokens=kept))
        self._jobs = jobs
        if settings.schema is not None:
            self._grammar = engine.grammars.json_schema(schema_text(settings.schema))
        self._engine = engine

    def _page_tokens(self, config: ModelConfig) -> int:
        """Of a page that has as many tiles as it may, with its answer."""
        tiles = self._settings.max_tiles or config.max_tiles
        with_thumbnail = num_tiles_with_thumbnail(Grid(tiles, 1), config.use_thumbnail)
        answer = self._settings.generation.max_tokens or ANSWER_TOKENS
        return with_thumbnail * config.tokens_per_tile + TEXT_TOKENS + answer

    def _prepare(self, page: Page | PageResult) -> Seen | _Ready | PageResult:
        """In the thread of the pages."""
        if isinstance(page, PageResult):
            return page
        seen = attempt(lambda: look_at(page, self._settings))
        if isinstance(seen, Failure):
            log_failure(seen.error)
            result = PageResult(path=page.name, number=page.number, count=page.count, status="ok")
            return failed(result, page, _told(seen.error))
        return self._make_ready(seen) if isinstance(seen, Seen) and self._engine else seen

    def _make_ready(self, seen: Seen) -> _Ready | PageResult:
        engine = self._engine
        assert engine is not None
        image = seen.image
        made = attempt(lambda: self._probes(image) if seen.is_turned else [self._request(image)])
        if isinstance(made, Failure):
            return failed(seen.result, seen.page, _told(made.error))
        [view] = view_pages([seen.page], [seen.image.size], engine.config, self._settings.max_tiles)
        # The picture is not kept: its tiles are cut.
        return _Ready(replace(seen, image=_NOTHING), view, made)

    def _view(self, page: Page, image: Image.Image) -> PageView:
        engine = self._engine
        assert engine is not None
        return view_pages([page], [image.size], engine.config, self._settings.max_tiles)[0]

    def _probes(self, image: Image.Image) -> list[EngineRequest]:
        """A request for each of the four directions."""
        square = most_inked(image)
        options = replace(self._settings.generation, max_tokens=PROBE_TOKENS)
        return [
            self._request(turn(square, degrees), max_tiles=1, options=options, has_form=False)
            for degrees in DIRECTIONS
        ]

    def _request(
        self,
        image: Image.Image,
        max_tiles: int | None = None,
        options: GenerationOptions | None = None,
        *,
        has_form: bool = True,
    ) -> EngineRequest:
        settings, engine = self._settings, self._engine
        assert engine is not None
        # Without another number wanted, that of the tokens themselves, which tells confidence.
        logprobs = 0 if settings.rotate and settings.logprobs is None else settings.logprobs
        return EngineRequest.chat(
            engine,
            [user_message(settings.question, 1)],
            [image],
            system=settings.system,
            max_tiles=max_tiles or settings.max_tiles,
            max_pixels=settings.max_pixels,
            limit_option=LIMIT_OPTION,
            options=options or settings.generation,
            num_logprobs=logprobs,
            grammar=self._grammar if has_form else None,
        )

    def _submit(self, reading: _Reading, requests: list[EngineRequest]) -> None:
        engine = self._engine
        assert engine is not None
        reading.parts = [_Part() for _ in requests]
        for part, request in zip(reading.parts, requests, strict=True):
            hear = partial(self._hear, reading, part)
            part.running = engine.prepare(request, hear)
            engine.submit(part.running)

    def _hear(self, reading: _Reading, part: _Part, event: Event) -> None:
        self._events.append((reading, part, event))

    def _step(self) -> Iterator[tuple[int, PageResult]]:
        engine = self._engine
        assert engine is not None
        engine.step()
        while self._events:
            reading, part, event = self._events.popleft()
            match event:
                case Piece(text, tokens):
                    part.tokens += tokens
                    self._watch(reading, part, text)
                case Ended():
                    part.ended = event
                case Failed():
                    part.failed = event
            if part.has_ended and all(one.has_ended for one in reading.parts):
                result = self._next(reading)
                if result is not None:
                    del self._open[reading.number]
                    yield reading.number, result

    def _watch(self, reading: _Reading, part: _Part, text: str) -> None:
        if self._watcher is not None and text and reading.how != _PROBE:
            self._watcher.hears(reading.view, text)
        if part.watch.push(text) and not part.is_loop and self._settings.retry:
            part.is_loop = True
            self._end(part)

    def _end(self, part: _Part) -> None:
        if self._engine is not None and part.running is not None:
            self._engine.cancel(part.running)

    def _cancel(self, reading: _Reading) -> None:
        for part in reading.parts:
            self._end(part)

    def _next(self, reading: _Reading) -> PageResult | None:
        """All parts of an attempt have ended: the page's result, or None when it is read again."""
        if reading.how == _PROBE:
            return self._turn(reading)
        outcome = self._judge(reading.parts)
        reading.outcomes.append((reading.how, outcome))
        if self._is_doubtful(reading):
            reading.is_probed = True
            probes = attempt(lambda: self._probes(draw(reading.page, self._settings)))
            if not isinstance(probes, Failure):
                reading.how = _PROBE
                self._submit(reading, probes)
                return None
        return self._try_again(reading)

    def _is_doubtful(self, reading: _Reading) -> bool:
        """Whether the page may be held the wrong way: the model is not sure of what it reads."""
        if not self._settings.rotate or reading.is_probed:
            return False
        tokens = [token for part in reading.parts for token in part.tokens]
        return bool(tokens) and _confidence(tokens) < DOUBTFUL_LOGPROB

    def _turn(self, reading: _Reading) -> PageResult | None:
        """The directions have been probed: the page is read in the best, if it was not yet."""
        sure = [_confidence(part.tokens) if part.tokens else -math.inf for part in reading.parts]
        best = max(range(len(sure)), key=lambda index: sure[index])
        if sure[best] < sure[0] + TURN_MARGIN:
            best = 0
        if best == 0 and reading.outcomes:
            return self._try_again(reading)
        reading.outcomes.clear()
        reading.result = replace(reading.result, turned=DIRECTIONS[best])
        image = attempt(lambda: draw(reading.page, self._settings, reading.result.turned))
        requests = image if isinstance(image, Failure) else attempt(lambda: [self._request(image)])
        if isinstance(image, Failure) or isinstance(requests, Failure):
            error = image.error if isinstance(image, Failure) else requests.error  # type: ignore[union-attr]
            return failed(reading.result, reading.page, _told(error))
        reading.how, reading.view = _WHOLE, self._view(reading.page, image)
        if self._watcher is not None and best:
            self._watcher.begins_again(reading.view, f"turned by {DIRECTIONS[best]} degrees")
        self._submit(reading, requests)
        return None

    def _try_again(self, reading: _Reading) -> PageResult | None:
        """In the next of the ways that are left, if it did not end well; otherwise the result."""
        outcome = reading.outcomes[-1][1]
        if reading.left is None:
            reading.left = self._ways(outcome, reading)
        while outcome.status != "ok" and reading.left:
            reading.how = reading.left.pop(0)
            requests = attempt(partial(self._again, reading))
            if isinstance(requests, Failure) or not requests:
                continue  # this way is not open to this page
            if self._watcher is not None:
                self._watcher.begins_again(reading.view, reading.how)
            self._submit(reading, requests)
            return None
        return self._finish(reading)

    def _finish(self, reading: _Reading) -> PageResult:
        outcomes = reading.outcomes
        best = max((outcome for _, outcome in outcomes), key=lambda outcome: outcome.rank)
        attempts = tuple(
            Attempt(
                how=how,
                status=one.status,
                num_tokens=0 if one.answer is None else len(one.answer.tokens),
            )
            for how, one in outcomes
        )
        result = replace(
            reading.result,
            status=best.status,
            text=best.text,
            answer=best.answer,
            view=reading.view,
            attempts=attempts if len(attempts) > 1 else (),
        )
        if best.error is not None:
            return replace(failed(result, reading.page, best.error), view=None)
        return result if reading.layer is None else _compared(result, reading.layer)

    def _ways(self, outcome: _Outcome, reading: _Reading) -> list[str]:
        """In which other ways a page may be read."""
        if not self._settings.retry or outcome.status in ("ok", "failed"):
            return []
        # Half a page does not have the form of a whole one.
        halves = [] if self._grammar is not None else [_HALVES]
        if outcome.status == "truncated":
            # Whoever says how long an answer may be wants no more.
            return [] if self._settings.generation.max_tokens else halves
        return [_OTHER_TILES, *halves, _WARMER]

    def _again(self, reading: _Reading) -> list[EngineRequest]:
        """The requests of the way that is to be tried; none where it leads to the same."""
        image = draw(reading.page, self._settings, reading.result.turned)
        if reading.how == _HALVES:
            return [self._request(half) for half in _halves(image)]
        if reading.how == _WARMER:
            return [self._request(image, options=_warmer(self._settings.generation))]
        num_tiles = reading.view.grid.num_tiles
        return [self._request(image, max_tiles=num_tiles // 2 if num_tiles > 1 else 2)]

    def _judge(self, parts: list[_Part]) -> _Outcome:
        """What the parts of an attempt come to together: as the worst of them ended."""
        for part in parts:
            if part.failed is not None:
                error = part.failed.error or _told(part.failed.cause)
                if part.failed.error is None and part.failed.cause is not None:
                    log_failure(part.failed.cause)
                return _Outcome(status="failed", error=error)
        answers, texts, statuses = [], [], list[PageStatus]()
        for part in parts:
            text, status = _status(part)
            answers.append(self._answer(part, text))
            texts.append(text)
            statuses.append(status)
        worst: tuple[PageStatus, ...] = ("repeated", "truncated", "ok")
        return _Outcome(
            status=next(status for status in worst if status in statuses),
            text="\n".join(text for text in texts if text),
            answer=answers[0] if len(answers) == 1 else joined(answers),
        )

    def _answer(self, part: _Part, text: str) -> Answer:
        assert part.ended is not None
        data = None
        if self._grammar is not None and part.ended.reason == "stop":
            with suppress(ValueError):  # a stop string may have cut it
                data = json.loads(text)
        return Answer(
            text=text,
            tokens=tuple(token.id for token in part.tokens),
            finish_reason=part.ended.reason,
            timings=part.ended.timings,
            data=data,
            logprobs=tuple(part.tokens) if self._settings.logprobs is not None else (),
        )


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


_OTHER_TILES: Final = "other tiles"
_HALVES: Final = "halves"
_WARMER: Final = f"temperature {RETRY_TEMPERATURE}"
_NOTHING: Final = Image.new("RGB", (1, 1))


def _status(part: _Part) -> tuple[str, PageStatus]:
    """The text of a part, with what repeats at its end once, and how it ended."""
    text = part.watch.text
    assert part.ended is not None
    if not part.is_loop and part.ended.reason != "length":
        return text, "ok"
    loop = repeated_tail(text)
    if loop is None:
        return text, "truncated"
    return loop.cut(text), "repeated"


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


def _confidence(tokens: list[TokenLogprob]) -> float:
    """The mean of the logarithms of their probabilities."""
    return sum(token.logprob or 0.0 for token in tokens) / len(tokens)


def _told(error: BaseException | None) -> IvlError:
    """An error for the page's result; a fault of the device is raised."""
    if isinstance(error, IvlError):
        return error
    if error is not None and is_device_fault(error):
        raise error
    return IvlError(
        f"The page could not be read: {type(error).__name__}: {error}.",
        "This is a fault of ivl; please report it.",
    )
