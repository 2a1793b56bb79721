"""Conversations: questions that follow one another, whose tokens stay where they are.

A conversation is a client of the engine. Between two turns it holds the blocks of what was said, so
that a question costs only its own tokens; when others need the place, it reads them again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import chain

from ivl.engine.answer import (
    Answer,
    Ended,
    Event,
    Failed,
    FinishReason,
    Piece,
    Timings,
    TokenLogprob,
)
from ivl.engine.blocks import Sequence as TokenSequence
from ivl.engine.blocks import Tile
from ivl.engine.engine import Engine
from ivl.engine.options import GenerationOptions, Schema, schema_text
from ivl.engine.prompt_builder import (
    LIMIT_OPTION,
    Images,
    MaxTiles,
    check_order,
    split_pages,
)
from ivl.engine.request import EngineRequest, RunningRequest
from ivl.errors import RequestError
from ivl.pages.reader import ImageSource
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.prompt.template import Message, user_message

QUESTION_FIRST = 'The question comes first: conversation.ask("What is the total?", "receipt.png").'


class Conversation:
    """Questions and answers, one after the other."""

    def __init__(self, engine: Engine, system: str | None = None) -> None:
        """A new, empty one; `system` None is the model's own system message."""
        self.engine = engine
        self.system = system
        self.num_images = 0
        self.ids: list[int] = []
        """What was said so far, as tokens; `tiles` are those of its images."""
        self.tiles: list[Tile] = []
        self._held: TokenSequence | None = None
        self._num_begun = 0  # answers; one that was asked for before another began is out of date
        self._is_writing = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return len(self.ids)

    def ask(
        self,
        question: str,
        images: Images = (),
        *,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        options: GenerationOptions | None = None,
        schema: Schema = None,
        logprobs: int | None = None,
    ) -> Generation:
        """The next question, about new images or those shown before; of one with several pages
        about all of them.

        `schema`: the JSON that the answer must be: a JSON schema, or a class that has one (of
        pydantic). `logprobs`: of how many tokens beside each of the answer's the logarithm of the
        probability is wanted too. The question comes first here, for a later one needs no image.
        Nothing has changed when this raises: RequestError for images that cannot be read or a form
        that cannot be had, CapacityError when the context is full.
        """
        check_order(question, images, QUESTION_FIRST)
        images = list(chain.from_iterable(split_pages(images, max_pixels=max_pixels)))
        message = user_message(question, len(images), num_earlier_images=self.num_images)
        return self._submit([message], images, max_tiles, max_pixels, options, schema, logprobs)

    def resume(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource] = (),
        *,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        options: GenerationOptions | None = None,
        schema: Schema = None,
        logprobs: int | None = None,
    ) -> Generation:
        """Starts from a whole history, whose last message is the user's; images of one page.
        RequestError when something has been asked already."""
        if self._num_begun:
            raise RequestError(
                "This conversation has already begun.", "Start a new conversation with the history."
            )
        return self._submit(messages, images, max_tiles, max_pixels, options, schema, logprobs)

    def _submit(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource],
        max_tiles: MaxTiles,
        max_pixels: int,
        options: GenerationOptions | None,
        schema: Schema,
        logprobs: int | None,
    ) -> Generation:
        if self._is_writing:
            raise _another_has_begun()
        engine = self.engine
        grammar = None
        if schema is not None:
            grammar = engine.grammars.json_schema(schema_text(schema))
        request = EngineRequest.chat(
            engine,
            messages,
            images,
            after=self,
            system=self.system,
            max_tiles=max_tiles,
            max_pixels=max_pixels,
            limit_option=LIMIT_OPTION,
            options=GenerationOptions.from_any(options),
            num_logprobs=logprobs,
            grammar=grammar,
        )
        return Generation(self, request, len(images))

    def begin(self, generation: Generation, heard: deque[Event]) -> RunningRequest:
        """The answer is wanted now; RequestError when it is out of date, or another is written."""
        if self._is_writing or self._num_begun != generation.turn:
            raise _another_has_begun()
        running = self.engine.prepare(generation.request, heard.append, owner=self)
        self.engine.submit(running, self._held)
        self._num_begun += 1
        self._is_writing, self._held = True, None
        return running

    def settle(self, sequence: TokenSequence, generation: Generation, said: list[int]) -> None:
        """The answer has ended: the conversation holds just what was said, and nothing of a turn
        whose prompt was not read to its end."""
        self._is_writing = False
        request = generation.request
        if generation.has_begun:
            self.ids = request.ids + said
            self.tiles = request.tiles
            self.num_images += generation.num_images
        self.engine.cut(sequence, len(self.ids))
        self._held = sequence

    @property
    def turn(self) -> int:
        """How many answers have begun."""
        return self._num_begun


class Generation:
    """One answer while it comes into being: iterate over it for its pieces of text.

    `answer` is there when the iteration has ended, also when it was ended early: by `close`, or by
    leaving a `with` block.
    """

    def __init__(self, conversation: Conversation, request: EngineRequest, num_images: int) -> None:
        self.answer: Answer | None = None
        self.request, self.num_images = request, num_images
        self.turn = conversation.turn
        self.has_begun = False
        """Whether the prompt has been read to its end."""
        self._conversation = conversation
        self._text = ""
        self._tokens: list[TokenLogprob] = []
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer where it stands; the conversation can go on from there."""
        self._pieces.close()

    def result(self) -> Answer:
        """Runs to the end and returns the answer."""
        for _ in self._pieces:
            pass
        assert self.answer is not None
        return self.answer

    def _run(self) -> Generator[str, None, None]:
        engine, heard = self._conversation.engine, deque[Event]()
        running = self._conversation.begin(self, heard)
        try:
            while not running.has_ended or heard:
                while not heard:
                    engine.step()
                if text := self._hear(heard.popleft()):
                    yield text
        finally:
            engine.cancel(running)
            for event in heard:
                if not isinstance(event, Failed):
                    self._hear(event)
            if self.answer is None:  # it has failed
                self.answer = self._answer("cancelled", running.timings())
            said = [token.id for token in self._tokens]
            self._conversation.settle(running.sequence, self, said)

    def _hear(self, event: Event) -> str:
        """New text. Raises what the answer has failed with."""
        match event:
            case Piece(text, tokens):
                self.has_begun = True
                self._text += text
                self._tokens += tokens
                return text
            case Ended(reason, timings):
                self.has_begun = self.has_begun or reason != "cancelled"
                self.answer = self._answer(reason, timings)
                return ""
            case Failed(error, cause):
                raise error or cause or AssertionError("a request has failed")

    def _answer(self, reason: FinishReason, timings: Timings) -> Answer:
        wanted = self.request.num_logprobs is not None
        has_form = self.request.grammar is not None and reason == "stop"
        data = None
        if has_form:
            with suppress(ValueError):  # a stop string may have cut it
                data = json.loads(self._text)
        return Answer(
            text=self._text,
            tokens=tuple(token.id for token in self._tokens),
            finish_reason=reason,
            timings=timings,
            data=data,
            logprobs=tuple(self._tokens) if wanted else (),
        )


def _another_has_begun() -> RequestError:
    return RequestError(
        "Another answer of this conversation has begun.",
        "Finish it, or close() it, before you ask again; two at once need two conversations.",
    )
