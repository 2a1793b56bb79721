"""A request: a prompt that was made ready, and its answer while the engine works on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ivl.engine.answer import (
    Ended,
    Failed,
    FinishReason,
    Listener,
    Piece,
    Timings,
    TokenLogprob,
    hears_nothing,
)
from ivl.engine.blocks import Sequence, Tile, place_tiles
from ivl.engine.choosing import Chooser, Draft
from ivl.engine.containment import contained, log_failure
from ivl.engine.grammar import Grammar
from ivl.engine.model_runner import LoadedModel
from ivl.engine.options import GenerationOptions
from ivl.engine.prompt_builder import (
    MaxTiles,
    TokenizedPrompt,
    build_prompt,
    check_capacity,
    prepare_images,
    tokenize,
)
from ivl.engine.stopping import StopText
from ivl.errors import IvlError, RequestError
from ivl.pages.reader import ImageSource
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.prompt.template import Message, Text
from ivl.prompt.tokenizer import StreamDecoder, Tokenizer


class Said(Protocol):
    """What a request goes on from: the tokens of a conversation so far, and their tiles."""

    ids: list[int]
    tiles: list[Tile]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A prompt that was checked and made ready; it can be submitted any number of times.

    ids: the tokens; `tiles`: of its images, and where they stand.
    num_logprobs: None, or of how many tokens beside the chosen one the logarithm of the
        probability is wanted too.
    grammar: the form that the answer must have.
    num_earlier_tiles: of `tiles`, those of earlier turns of a conversation.
    """

    ids: list[int]
    tiles: list[Tile] = field(default_factory=list)
    max_tokens: int
    options: GenerationOptions
    num_logprobs: int | None = None
    grammar: Grammar | None = None
    num_earlier_tiles: int = 0

    @property
    def num_new_tiles(self) -> int:
        return len(self.tiles) - self.num_earlier_tiles

    @property
    def tile_bytes(self) -> int:
        """Memory of the tiles, as long as the request is open."""
        return sum(tile.pixels.nbytes for tile in self.tiles if tile.pixels is not None)

    @classmethod
    def chat(
        cls,
        engine: LoadedModel,
        messages: Many[Message],
        images: Many[ImageSource] = (),
        *,
        after: Said | None = None,
        system: str | None = None,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        limit_option: str | None = None,
        context: int | None = None,
        options: GenerationOptions | None = None,
        num_logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> EngineRequest:
        """A conversation whose last message is the user's; `images` fill its slots in order.

        `after`: the one message follows what was said there. `system` None is the model's own.
        `max_tiles`, `max_pixels` and `limit_option` as of `prepare_images`; `context`: of
        prompt and answer, if less than the context. Errors as of `Conversation.ask`.
        """
        config = engine.config
        tiles, tiles_per_image = prepare_images(
            images,
            config,
            max_tiles,
            max_pixels=max_pixels,
            context=engine.context,
            limit_option=limit_option,
        )
        prompt = build_prompt(
            messages,
            config,
            engine.tokenizer,
            tiles_per_image,
            system=system,
            is_next=after is not None and bool(after.ids),
        )
        asked = _Asked(context, options, num_logprobs, grammar)
        return cls._of(engine, prompt, tiles, asked, after)

    @classmethod
    def completion(
        cls,
        engine: LoadedModel,
        text: str,
        *,
        context: int | None = None,
        options: GenerationOptions | None = None,
        num_logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> EngineRequest:
        """A text that the model goes on with, without turns and without control tokens."""
        asked = _Asked(context, options, num_logprobs, grammar)
        return cls._of(engine, tokenize((Text(text),), engine.tokenizer), None, asked)

    @classmethod
    def _of(
        cls,
        engine: LoadedModel,
        prompt: TokenizedPrompt,
        tiles: np.ndarray | None,
        asked: _Asked,
        after: Said | None = None,
    ) -> EngineRequest:
        options = asked.options or GenerationOptions()
        options.check_tokens(engine.config.decoder.vocab_size)
        most = engine.config.decoder.vocab_size
        if asked.num_logprobs is not None and not 0 <= asked.num_logprobs <= most:
            raise RequestError(f"logprobs must be between 0 and {most}, not {asked.num_logprobs}.")
        before, earlier = (after.ids, after.tiles) if after is not None else ([], [])
        if not prompt.ids:
            raise RequestError("There is nothing to go on from.", "Give a text that is not empty.")
        context = min(engine.context, asked.context or engine.context)
        num_tiles = 0 if tiles is None else len(tiles)
        room = check_capacity(prompt, len(before), context, num_tiles, engine.config)
        return cls(
            ids=[*before, *prompt.ids],
            tiles=[*earlier, *place_tiles(prompt.is_image, tiles, len(before))],
            max_tokens=min(room, options.max_tokens or room),
            options=options,
            num_logprobs=asked.num_logprobs,
            grammar=asked.grammar,
            num_earlier_tiles=len(earlier),
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks of its answer."""

    context: int | None
    options: GenerationOptions | None
    num_logprobs: int | None
    grammar: Grammar | None


class RunningRequest:
    """Chooses the tokens of one answer, turns them into text, and tells its listener."""

    def __init__(
        self,
        request: EngineRequest,
        listener: Listener,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        *,
        num_alike: int,
        release: Callable[[RunningRequest], None],
        owner: object | None = None,
    ) -> None:
        """`num_alike`: as of `Sequence`. `release` is called once, before the
        listener hears of the ending: who asks again then finds room. `owner`: who goes on from
        where it ends."""
        self._release = release
        self.request, self.listener, self.stop_ids = request, listener, stop_ids
        self.owner = owner
        self.sequence = Sequence(
            ids=list(request.ids),
            tiles=request.tiles,
            max_tokens=request.max_tokens,
            # Keys beyond the trained length depend on the length of the whole prompt there.
            num_shareable=num_alike if len(request.ids) <= num_alike else 0,
            num_alike=num_alike,
        )
        self.chooser = Chooser(
            request.options, request.ids, stop_ids=stop_ids, grammar=request.grammar
        )
        self.draft = Draft()
        """What is guessed of the answer in this step, if the sequence has `guesses`."""
        self.has_ended = False
        self.encode_s = 0.0
        self.num_tokens = 0
        """Tokens of the answer so far."""
        self.num_guessed = self.num_kept = 0
        self._decoder = StreamDecoder(tokenizer)
        self._text = StopText(request.options.stop)
        self._unsent: list[tuple[TokenLogprob, int]] = []
        """Tokens whose text is not decided, and how many characters there were after each."""
        self._num_characters = 0
        self._submitted = time.perf_counter()
        self._admitted: float | None = None
        self._first_token: float | None = None

    @property
    def most_guesses(self) -> int:
        """As far as there is room for an answer."""
        return self.request.max_tokens - self.num_tokens - 1

    def note_admitted(self) -> None:
        if self._admitted is None:
            self._admitted = time.perf_counter()

    @property
    def reads_logits(self) -> bool:
        """Whether more of them is wanted than which token is the likeliest."""
        return self.request.num_logprobs is not None or not self.chooser.is_plainly_greedy

    def choose(self, logits: Tensor | None, likeliest: Many[int] | None) -> None:
        """float32 logits (1 + guesses, vocab), and of each row the likeliest token, if somebody has
        looked: takes the next tokens, sends what has become certain, and ends the answer if one of
        them ends it. The likeliest are enough where nothing `reads_logits`."""
        if self._first_token is None:
            self._first_token = time.perf_counter()
        draft = self.draft if self.sequence.guesses else Draft()
        self.num_guessed += len(draft.tokens)
        for place, token in enumerate(self.chooser.choose(logits, draft, likeliest)):
            if token in self.stop_ids:
                self.end("stop")
                return
            self.num_tokens += 1
            self.sequence.ids.append(token)
            if place < len(draft.tokens) and token == draft.tokens[place]:
                self.sequence.num_computed += 1
                self.num_kept += 1
            self._send(self._decoder.push(token), self._describe(token, logits, place))
            if self._text.stopped or self.chooser.is_complete:
                self.end("stop")
            elif self.num_tokens >= self.request.max_tokens:
                self.end("length")
            if self.has_ended:
                return

    def end(self, reason: FinishReason) -> None:
        """Sends what was held back, and the ending."""
        if self.has_ended:
            return
        rest = self._text.push(self._decoder.finish()) + self._text.finish()
        # What a stop string cut off is not part of the answer, and nor are its tokens.
        tokens = self._take(self._text.num_settled)
        if rest or tokens:
            self.listener(Piece(rest, tokens))
        self._finish(Ended("stop" if self._text.stopped else reason, self.timings()))

    def fail(self, error: BaseException) -> None:
        """Ends without an answer; see `Failed`."""
        if not self.has_ended:
            known = error if isinstance(error, IvlError) else None
            self._finish(Failed(known, error))

    def _finish(self, ending: Ended | Failed) -> None:
        """The last event. A listener that cannot take it has no other to wait for."""
        self.has_ended = True
        self._release(self)
        listener, self.listener = self.listener, hears_nothing
        with contained(log_failure, "its ending was sent"):
            listener(ending)

    def _send(self, text: str, token: TokenLogprob) -> None:
        self._num_characters += len(text)
        self._unsent.append((token, self._num_characters))
        shown = self._text.push(text)
        tokens = self._take(self._text.num_settled)
        if shown or tokens:
            self.listener(Piece(shown, tokens))

    def _take(self, num_characters: int) -> tuple[TokenLogprob, ...]:
        """The unsent tokens whose text lies before this character."""
        taken = [token for token, until in self._unsent if until <= num_characters]
        self._unsent = self._unsent[len(taken) :]
        return tuple(taken)

    def _describe(self, token: int, logits: Tensor | None, place: int) -> TokenLogprob:
        count = self.request.num_logprobs
        if count is None or logits is None:
            return TokenLogprob(token)
        logprobs = logits[place].log_softmax(-1)
        values, ids = torch.topk(logprobs, count) if count else (logprobs[:0], logprobs[:0])
        top = tuple(zip(ids.long().tolist(), values.tolist(), strict=True))
        return TokenLogprob(token, float(logprobs[token]), top)

    def timings(self) -> Timings:
        """So far."""
        now = time.perf_counter()
        admitted = now if self._admitted is None else self._admitted
        first_token = now if self._first_token is None else self._first_token
        return Timings(
            queue_s=admitted - self._submitted,
            encode_s=self.encode_s,
            prefill_s=max(0.0, first_token - admitted - self.encode_s),
            decode_s=now - first_token,
            num_tiles=self.request.num_new_tiles,
            num_prompt_tokens=self.sequence.num_prompt_tokens,
            num_cached_tokens=self.sequence.num_cached,
            num_answer_tokens=self.num_tokens,
            num_guessed_tokens=self.num_guessed,
            num_kept_tokens=self.num_kept,
        )
