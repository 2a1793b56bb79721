"""Questions about pages, many pages at a time.

Who asks about a page is a generator, a talk: it yields the questions that it has, one or several at
once, and is sent their answers. What it asks next may depend on that; what it returns is the page's
result. The engine works for all talks together: each page joins and leaves at any step. Pages are
drawn and cut a little ahead, in a thread of their own.

    def total_of(page):
        [said] = yield [PageQuestion(image=page, question="What is the total?")]
        return said.text

An error that belongs to a question (there is no room for it, the model has failed) is raised where
the talk waits for the answer; who does not catch it ends with it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from PIL import Image

from ivl.config import ModelConfig
from ivl.documents.field_values import AnsweredToken
from ivl.documents.looking import ReadSettings
from ivl.documents.loops import LoopWatch
from ivl.engine.answer import Answer, Ended, Event, Failed, Piece, TokenLogprob
from ivl.engine.containment import Failure, attempt, is_device_fault, log_failure
from ivl.engine.engine import Engine, EngineLimits
from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions
from ivl.engine.prompt_builder import LIMIT_OPTION
from ivl.engine.request import EngineRequest, RunningRequest
from ivl.errors import IvlError
from ivl.footprint.workload import TEXT_TOKENS
from ivl.json_values import JsonObject, JsonValue
from ivl.loading import tokens_that_fit
from ivl.prompt.template import user_message
from ivl.prompt.tiles import Grid, num_tiles_with_thumbnail
from ivl.prompt.tokenizer import StreamDecoder, Tokenizer

MOST_JOBS: Final = 16
"""Pages at once, where nobody says how many; beyond, a processor gains little."""
ANSWER_TOKENS: Final = 1024
"""Tokens that a full page is taken to have, when room is made for several."""
MOST_AHEAD: Final = 8
"""Pages that are drawn ahead: a page of 13 tiles takes 8 MB."""
MOST_GRAMMARS: Final = 256
"""Forms that are kept; a schema has one for each field, and one for all together."""

Result = TypeVar("Result")


class Reader(Protocol):
    """What pages are read with; `ivl.Model` is one."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def facts(self) -> JsonObject | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuestion:
    """A question about a page, or a part of one.

    image: upright RGB. schema: what the answer must follow, if anything. max_tiles, options: in the
    place of those of the settings. num_logprobs: as of `EngineRequest`. ends_loops: an answer that
    goes round in circles is ended. hears: is called with each new piece of the text.
    """

    image: Image.Image
    question: str
    schema: JsonObject | None = None
    max_tiles: int | None = None
    options: GenerationOptions | None = None
    num_logprobs: int | None = 0
    ends_loops: bool = True
    hears: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAnswer:
    """text: all of it. tokens: those of an answer with a schema, with their probabilities and
    places in it. is_whole: the model ended the answer itself. is_loop: it went round in circles,
    and was ended. answer: the engine's own."""

    text: str
    tokens: tuple[AnsweredToken, ...] = ()
    is_whole: bool
    is_loop: bool = False
    answer: Answer | None = None


Talk: TypeAlias = Generator[list[PageQuestion], list[PageAnswer], Result]
_Ready: TypeAlias = tuple[Talk[Result], list[tuple[PageQuestion, EngineRequest]]]
_Coming: TypeAlias = Future[Talk[Result] | _Ready[Result] | Result | Failure]


@dataclass(slots=True)
class _Asked:
    """A question whose answer is being written."""

    question: PageQuestion
    running: RunningRequest | None = None
    tokens: list[TokenLogprob] = field(default_factory=list)
    watch: LoopWatch = field(default_factory=LoopWatch)
    is_loop: bool = False
    ended: Ended | None = None
    error: IvlError | None = None

    @property
    def is_done(self) -> bool:
        return self.ended is not None or self.error is not None


@dataclass(slots=True)
class _Open(Generic[Result]):
    """A page that is being talked about."""

    number: int
    talk: Talk[Result]
    asked: list[_Asked] = field(default_factory=list)


class PageTalks(Generic[Result]):
    """Leads talks about pages with one engine. Use it once."""

    def __init__(
        self,
        load: Callable[[], Reader],
        settings: ReadSettings,
        *,
        jobs: int | None = None,
        most_pages: int | None = None,
        schema: JsonObject | None = None,
    ) -> None:
        """load: gives the model, when there is a page for it. settings: those of them that say how
        a page is shown and how tokens are chosen. jobs: pages at once; None: as many as memory
        holds, at most `MOST_JOBS`. most_pages: that are going to come, if that is known. schema:
        one that will be asked for; where it cannot be enforced `run` raises RequestError, before
        any page is asked about."""
        self._load, self._settings, self._schema = load, settings, schema
        self._jobs, self._most_pages = jobs, most_pages
        self._engine: Engine | None = None
        self._config: ModelConfig | None = None
        self._grammars: dict[str, Grammar] = {}
        self._events: deque[tuple[_Open[Result], _Asked, Event]] = deque()
        self._open: dict[int, _Open[Result]] = {}

    @property
    def config(self) -> ModelConfig:
        """Of the model, which is there when the first talk begins."""
        assert self._config is not None
        return self._config

    def run(
        self,
        pages: Iterable[Callable[[], Talk[Result] | Result]],
        failed: Callable[[int, IvlError], Result],
    ) -> Iterator[tuple[int, Result]]:
        """What each talk returns, with its page's number, from 0, as soon as it is known.

        pages: each gives the talk about a page, or the result where nothing is to be asked; they
        are called a little ahead, in a thread of their own. failed: the result of a page that an
        error ended.
        """
        coming, ahead = enumerate(pages), deque[tuple[int, _Coming[Result]]]()
        are_all = False
        with ThreadPoolExecutor(1, thread_name_prefix="ivl-pages") as thread:
            try:
                while True:
                    while not are_all and len(ahead) < min(self._jobs or MOST_JOBS, MOST_AHEAD):
                        number, make = next(coming, (0, None))
                        if make is None:
                            are_all = True
                        else:
                            ahead.append((number, thread.submit(self._prepare, make)))
                    yield from self._take(ahead, failed)
                    if self._open:
                        yield from self._step(failed)
                    elif are_all and not ahead:
                        return
            finally:
                for _, future in ahead:
                    future.cancel()
                for one in list(self._open.values()):
                    for asked in one.asked:
                        self._end(asked)
                    one.talk.close()

    def _prepare(
        self, make: Callable[[], Talk[Result] | Result]
    ) -> Talk[Result] | _Ready[Result] | Result | Failure:
        """In the thread of the pages: the talk, with its first questions when there is an engine
        that they can be made for."""
        made = attempt(make)
        if self._engine is None or not isinstance(made, Generator):
            return made
        return self._begun(made)

    def _begun(self, talk: Talk[Result]) -> _Ready[Result] | Result | Failure:
        """The talk with its first questions, or what it returns without any."""
        first = attempt(lambda: self._requests(next(talk)))
        if not isinstance(first, Failure):
            return talk, first
        return first.error.value if isinstance(first.error, StopIteration) else first

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
            made = future.result()
            if isinstance(made, Generator):  # drawn before there was a model
                if self._engine is None:
                    self._start_engine()
                made = self._begun(made)
            if isinstance(made, Failure):
                yield number, failed(number, told(made.error))
                continue
            if not isinstance(made, tuple):
                yield number, made
                continue
            one = self._open[number] = _Open(number, made[0])
            self._submit(one, made[1])

    def _start_engine(self) -> None:
        """Loads the model, and takes the place that so many pages need."""
        model = self._load()
        self._config = model.config
        self._jobs, self._engine = _seats(
            model.engine, self._settings, self._jobs, self._most_pages or MOST_JOBS
        )
        if self._schema is not None:
            self._grammar(self._engine, self._schema)

    def _requests(self, questions: list[PageQuestion]) -> list[tuple[PageQuestion, EngineRequest]]:
        """The questions, ready to be asked; the pictures are not kept: their tiles are cut."""
        engine, settings = self._engine, self._settings
        assert engine is not None
        return [
            (
                replace(asked, image=_NOTHING),
                EngineRequest.chat(
                    engine,
                    [user_message(asked.question, 1)],
                    [asked.image],
                    system=settings.system,
                    max_tiles=asked.max_tiles or settings.max_tiles,
                    max_pixels=settings.max_pixels,
                    limit_option=LIMIT_OPTION,
                    options=asked.options or settings.generation,
                    num_logprobs=asked.num_logprobs,
                    grammar=None if asked.schema is None else self._grammar(engine, asked.schema),
                ),
            )
            for asked in questions
        ]

    def _grammar(self, engine: Engine, schema: JsonObject) -> Grammar:
        key = json.dumps(schema)
        if key not in self._grammars:
            if len(self._grammars) >= MOST_GRAMMARS:
                self._grammars.clear()
            self._grammars[key] = engine.grammars.json_schema(schema)
        return self._grammars[key]

    def _submit(
        self, one: _Open[Result], requests: list[tuple[PageQuestion, EngineRequest]]
    ) -> None:
        engine = self._engine
        assert engine is not None
        one.asked = [_Asked(question) for question, _ in requests]
        for asked, (_, request) in zip(one.asked, requests, strict=True):
            asked.running = engine.prepare(request, partial(self._hear, one, asked))
            engine.submit(asked.running)

    def _hear(self, one: _Open[Result], asked: _Asked, event: Event) -> None:
        self._events.append((one, asked, event))

    def _step(self, failed: Callable[[int, IvlError], Result]) -> Iterator[tuple[int, Result]]:
        assert self._engine is not None
        self._engine.step()
        while self._events:
            one, asked, event = self._events.popleft()
            match event:
                case Piece(text, tokens):
                    asked.tokens += tokens
                    self._watch(asked, text)
                case Ended():
                    asked.ended = event
                case Failed(error, cause):
                    asked.error = told(error or cause)
            if asked.is_done and all(other.is_done for other in one.asked):
                yield from self._go_on(one, failed)

    def _watch(self, asked: _Asked, text: str) -> None:
        if asked.question.hears is not None and text:
            asked.question.hears(text)
        if asked.watch.push(text) and asked.question.ends_loops and not asked.is_loop:
            asked.is_loop = True
            self._end(asked)

    def _end(self, asked: _Asked) -> None:
        if self._engine is not None and asked.running is not None:
            self._engine.cancel(asked.running)

    def _go_on(
        self, one: _Open[Result], failed: Callable[[int, IvlError], Result]
    ) -> Iterator[tuple[int, Result]]:
        """Tells the talk the answers to its last questions, and asks the next."""
        error = next((asked.error for asked in one.asked if asked.error is not None), None)
        answers = [] if error is not None else [self._answered(asked) for asked in one.asked]
        while True:
            asked = attempt(partial(_next_questions, one.talk, answers, error))
            if isinstance(asked, Failure):
                raised = asked.error
                is_end = isinstance(raised, StopIteration)
                result = raised.value if is_end else failed(one.number, told(raised))
                break
            requests = attempt(partial(self._requests, asked))
            if not isinstance(requests, Failure):
                self._submit(one, requests)
                return
            error = told(requests.error)
        del self._open[one.number]
        one.talk.close()
        yield one.number, result

    def _answered(self, asked: _Asked) -> PageAnswer:
        assert self._engine is not None
        assert asked.ended is not None
        text, has_form = asked.watch.text, asked.question.schema is not None
        is_whole = asked.ended.reason == "stop"
        data: JsonValue = None
        if has_form and is_whole:
            with suppress(ValueError):  # a stop string may have cut it
                data = json.loads(text)
        return PageAnswer(
            text=text,
            tokens=tuple(places(asked.tokens, self._engine.tokenizer)) if has_form else (),
            is_whole=is_whole,
            is_loop=asked.is_loop,
            answer=Answer(
                text=text,
                tokens=tuple(token.id for token in asked.tokens),
                finish_reason=asked.ended.reason,
                timings=asked.ended.timings,
                data=data,
                logprobs=tuple(asked.tokens) if asked.question.num_logprobs is not None else (),
            ),
        )


def _next_questions(
    talk: Talk[Result], answers: list[PageAnswer], error: IvlError | None
) -> list[PageQuestion]:
    """What the talk asks next, when it is told the answers, or what has come in their place."""
    return talk.send(answers) if error is None else talk.throw(error)


_NOTHING: Final = Image.new("RGB", (1, 1))


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


def told(error: BaseException | None) -> IvlError:
    """An error for a page's result; a fault of the device is raised."""
    if isinstance(error, IvlError):
        return error
    assert error is not None
    if is_device_fault(error):
        raise error
    log_failure(error)
    return IvlError(
        f"The page could not be read: {type(error).__name__}: {error}.",
        "This is a fault of ivl; please report it.",
    )
