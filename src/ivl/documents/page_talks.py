"""Several questions about each of many pages, many pages at a time.

Who asks about a page is a generator: it yields what it asks, and is sent what was answered. What it
asks next may depend on that. The engine works for all of them together; what it has seen of a page
it does not see again for the next question.

    def total_of(page):
        said = yield PageQuestion(question="What is the total?")
        return said.text
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

from PIL import Image

from ivl.documents.batch import ANSWER_TOKENS, MOST_AHEAD, MOST_JOBS, Reader
from ivl.documents.field_values import AnsweredToken
from ivl.documents.looking import ReadSettings
from ivl.documents.loops import LoopWatch
from ivl.engine.answer import Ended, Event, Failed, Piece, TokenLogprob
from ivl.engine.containment import Failure, attempt, is_device_fault, log_failure
from ivl.engine.engine import Engine, EngineLimits
from ivl.engine.grammar import Grammar
from ivl.engine.prompt_builder import LIMIT_OPTION
from ivl.engine.request import EngineRequest, RunningRequest
from ivl.errors import IvlError
from ivl.footprint.workload import TEXT_TOKENS
from ivl.json_values import JsonObject
from ivl.loading import tokens_that_fit
from ivl.prompt.template import user_message
from ivl.prompt.tiles import Grid, num_tiles_with_thumbnail
from ivl.prompt.tokenizer import StreamDecoder, Tokenizer

MOST_GRAMMARS: Final = 256
"""Forms that are kept; a schema has one for each field, and one for all together."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuestion:
    """A question about the page, and the JSON schema that the answer must follow, if any."""

    question: str
    schema: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAnswer:
    """tokens: those of the text, with their probabilities and places. is_whole: the model ended the
    answer itself. is_loop: it went round in circles, and was ended."""

    text: str
    tokens: tuple[AnsweredToken, ...]
    is_whole: bool
    is_loop: bool = False


Talk: TypeAlias = Generator[PageQuestion, PageAnswer, Result]


@dataclass(frozen=True, slots=True)
class PageTalk(Generic[Result]):
    """A page that is going to be asked about: `image` is upright RGB."""

    image: Image.Image
    talk: Talk[Result]


_Coming: TypeAlias = Future[PageTalk[Result] | Result | Failure]


@dataclass(slots=True)
class _Open(Generic[Result]):
    """A page that is being asked about."""

    number: int
    page: PageTalk[Result]
    running: RunningRequest | None = None
    tokens: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    watch: LoopWatch = field(default_factory=LoopWatch)
    is_loop: bool = False


class PageTalks(Generic[Result]):
    """Asks about pages with one engine. Use it once."""

    def __init__(
        self,
        load: Callable[[], Reader],
        settings: ReadSettings,
        *,
        jobs: int | None = None,
        most_pages: int | None = None,
        schema: JsonObject | None = None,
    ) -> None:
        """As of `PageBatch`; of the settings those that say how a page is shown and how tokens are
        chosen. schema: one that will be asked for; where it cannot be enforced `run` raises
        RequestError, before any page is asked about."""
        self._load, self._settings, self._schema = load, settings, schema
        self._jobs, self._most_pages = jobs, most_pages
        self._engine: Engine | None = None
        self._grammars: dict[str, Grammar] = {}
        self._events: deque[tuple[_Open[Result], Event]] = deque()
        self._open: dict[int, _Open[Result]] = {}

    def run(
        self,
        pages: Iterable[Callable[[], PageTalk[Result] | Result]],
        failed: Callable[[int, IvlError], Result],
    ) -> Iterator[tuple[int, Result]]:
        """What each talk returns, with its page's number, from 0, as soon as it is known.

        pages: each gives the page with its talk, or the result where nothing is to be asked; they
        are called a little ahead, in a thread of their own. failed: the result of a page that an
        error ended.
        """
        coming, ahead = enumerate(pages), deque[tuple[int, _Coming[Result]]]()
        with ThreadPoolExecutor(1, thread_name_prefix="ivl-pages") as thread:
            try:
                while True:
                    while len(ahead) < min(self._jobs or MOST_JOBS, MOST_AHEAD):
                        number, make = next(coming, (0, None))
                        if make is None:
                            break
                        ahead.append((number, thread.submit(attempt, make)))
                    yield from self._take(ahead, failed)
                    if self._open:
                        yield from self._step(failed)
                    elif not ahead:
                        return
            finally:
                for _, future in ahead:
                    future.cancel()
                for one in list(self._open.values()):
                    self._end(one)
                    one.page.talk.close()

    def _take(
        self,
        ahead: deque[tuple[int, _Coming[Result]]],
        failed: Callable[[int, IvlError], Result],
    ) -> Iterator[tuple[int, Result]]:
        """Begins with pages that are ready, as far as there are seats; waits for one only where
        nothing else is to be done."""
        while ahead and len(self._open) < (self._jobs or MOST_JOBS):
            number, future = ahead[0]
            if self._open and not future.done():
                return
            ahead.popleft()
            page = future.result()
            if isinstance(page, Failure):
                yield number, failed(number, _told(page.error))
                continue
            if not isinstance(page, PageTalk):
                yield number, page
                continue
            if self._engine is None:
                self._start_engine()
            one = _Open(number, page)
            self._open[number] = one
            yield from self._go_on(one, None, failed)

    def _start_engine(self) -> None:
        """Loads the model, and takes the place that so many pages need."""
        engine = self._load().engine
        self._jobs, self._engine = _seats(
            engine, self._settings, self._jobs, self._most_pages or MOST_JOBS
        )
        if self._schema is not None:
            self._grammar(self._engine, self._schema)

    def _step(self, failed: Callable[[int, IvlError], Result]) -> Iterator[tuple[int, Result]]:
        assert self._engine is not None
        self._engine.step()
        while self._events:
            one, event = self._events.popleft()
            match event:
                case Piece(text, tokens):
                    one.text += text
                    one.tokens += tokens
                    if one.watch.push(text) and not one.is_loop:
                        one.is_loop = True
                        self._end(one)
                case Ended(reason=reason):
                    yield from self._go_on(one, self._answered(one, reason == "stop"), failed)
                case Failed(error, cause):
                    yield self._close(one, failed(one.number, _told(error or cause)))

    def _go_on(
        self,
        one: _Open[Result],
        answered: PageAnswer | None,
        failed: Callable[[int, IvlError], Result],
    ) -> Iterator[tuple[int, Result]]:
        """Tells the talk the answer to its last question, and asks the next."""
        try:
            asked = next(one.page.talk) if answered is None else one.page.talk.send(answered)
            self._ask(one, asked)
        except StopIteration as ended:
            yield self._close(one, ended.value)
        except IvlError as error:
            yield self._close(one, failed(one.number, error))

    def _close(self, one: _Open[Result], result: Result) -> tuple[int, Result]:
        del self._open[one.number]
        one.page.talk.close()
        return one.number, result

    def _ask(self, one: _Open[Result], asked: PageQuestion) -> None:
        engine, settings = self._engine, self._settings
        assert engine is not None
        request = EngineRequest.chat(
            engine,
            [user_message(asked.question, 1)],
            [one.page.image],
            system=settings.system,
            max_tiles=settings.max_tiles,
            max_pixels=settings.max_pixels,
            limit_option=LIMIT_OPTION,
            options=settings.generation,
            num_logprobs=0,
            grammar=None if asked.schema is None else self._grammar(engine, asked.schema),
        )
        one.tokens, one.text, one.watch, one.is_loop = [], "", LoopWatch(), False
        one.running = engine.prepare(request, partial(self._hear, one))
        engine.submit(one.running)

    def _grammar(self, engine: Engine, schema: JsonObject) -> Grammar:
        key = json.dumps(schema)
        if key not in self._grammars:
            if len(self._grammars) >= MOST_GRAMMARS:
                self._grammars.clear()
            self._grammars[key] = engine.grammars.json_schema(schema)
        return self._grammars[key]

    def _answered(self, one: _Open[Result], is_whole: bool) -> PageAnswer:
        assert self._engine is not None
        return PageAnswer(
            text=one.text,
            tokens=tuple(places(one.tokens, self._engine.tokenizer)),
            is_whole=is_whole,
            is_loop=one.is_loop,
        )

    def _hear(self, one: _Open[Result], event: Event) -> None:
        self._events.append((one, event))

    def _end(self, one: _Open[Result]) -> None:
        if self._engine is not None and one.running is not None:
            self._engine.cancel(one.running)


def places(tokens: Iterable[TokenLogprob], tokenizer: Tokenizer) -> Iterator[AnsweredToken]:
    """The tokens of an answer, each with the characters that it wrote. One that wrote a part of a
    character has the whole of it."""
    decoder = StreamDecoder(tokenizer)
    end = 0
    for token in tokens:
        start, end = end, end + len(decoder.push(token.id))
        yield AnsweredToken(token.logprob or 0.0, start, max(end, start + 1))


def _seats(
    engine: Engine, settings: ReadSettings, jobs: int | None, most_pages: int
) -> tuple[int, Engine]:
    """How many pages are asked about at once, and an engine with room for them."""
    most = min(jobs or MOST_JOBS, most_pages)
    if most <= 1:
        return 1, engine
    limits = EngineLimits(max_sequences=most)
    config = engine.config
    tiles = num_tiles_with_thumbnail(
        Grid(settings.max_tiles or config.max_tiles, 1), config.use_thumbnail
    )
    answer = settings.generation.max_tokens or ANSWER_TOKENS
    per_page = min(engine.context, tiles * config.tokens_per_tile + TEXT_TOKENS + answer)
    wanted, held = most * engine.context, tokens_that_fit(engine, limits)
    kept = wanted if held is None else min(wanted, max(held, engine.context))
    if jobs is None:
        most = max(1, min(most, kept // per_page))
    if most == 1:
        return 1, engine
    return most, engine.with_limits(replace(limits, max_sequences=most, kv_tokens=kept))


def _told(error: BaseException | None) -> IvlError:
    """An error for the page's result; a fault of the device is raised."""
    if isinstance(error, IvlError):
        return error
    assert error is not None
    if is_device_fault(error):
        raise error
    log_failure(error)
    return IvlError(
        f"The page could not be asked about: {type(error).__name__}: {error}.",
        "This is a fault of ivl; please report it.",
    )
