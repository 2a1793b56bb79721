"""What is asked of the batch engine, and what comes back: exactly one ending for every request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ivl.engine.answer import FinishReason
from ivl.engine.engine import Engine
from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions
from ivl.engine.request import (
    MaxTiles,
    TokenizedPrompt,
    check_capacity,
    prepare_images,
    tokenize,
)
from ivl.engine.sequence import TilePlace, place_tiles, tile_digests
from ivl.errors import IvlError, RequestError
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.prompt.template import Message, Prompt, Text, check_image_tokens, render


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """A prompt that was checked and made ready; it can be submitted any number of times.

    prompt: token ids, and which of them are places for image features.
    tiles_u8: uint8 (n, tile_px, tile_px, 3), None without images; `tiles`: where they stand.
    num_logprobs: None, or of how many tokens beside the chosen one the logarithm of the
        probability is wanted too.
    grammar: the form that the answer must have.
    """

    prompt: TokenizedPrompt
    tiles_u8: np.ndarray | None = None
    tiles: list[TilePlace] = field(default_factory=list)
    max_tokens: int
    options: GenerationOptions
    num_logprobs: int | None = None
    grammar: Grammar | None = None

    @property
    def tile_bytes(self) -> int:
        """Memory of the tiles, as long as the request is open."""
        return 0 if self.tiles_u8 is None else self.tiles_u8.nbytes

    @classmethod
    def chat(
        cls,
        engine: Engine,
        messages: Sequence[Message],
        images: Sequence[Any] = (),
        *,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        most_tokens: int | None = None,
        options: GenerationOptions | None = None,
        num_logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> BatchRequest:
        """A conversation whose last message is the user's; `images` fill its slots in order.

        `max_tiles` and `max_pixels` as of `prepare_images`; `most_tokens`: of prompt and answer,
        if less than the context. Errors as of `Conversation.ask`.
        """
        config = engine.config
        tiles, tiles_per_image = prepare_images(
            images, config, max_tiles, max_pixels=max_pixels, most_tokens=engine.context
        )
        prompt = render(
            messages,
            template=engine.template,
            tiles_per_image=tiles_per_image,
            tokens_per_tile=config.tokens_per_tile if config.vision else 0,
        )
        check_image_tokens(
            prompt, sum(tiles_per_image) * config.tokens_per_tile if tiles_per_image else 0
        )
        return cls._of(engine, prompt, tiles, most_tokens, options, num_logprobs, grammar)

    @classmethod
    def completion(
        cls,
        engine: Engine,
        text: str,
        *,
        most_tokens: int | None = None,
        options: GenerationOptions | None = None,
        num_logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> BatchRequest:
        """A text that the model goes on with, without turns and without control tokens."""
        return cls._of(engine, (Text(text),), None, most_tokens, options, num_logprobs, grammar)

    @classmethod
    def _of(
        cls,
        engine: Engine,
        prompt: Prompt,
        tiles: np.ndarray | None,
        most_tokens: int | None,
        options: GenerationOptions | None,
        num_logprobs: int | None,
        grammar: Grammar | None,
    ) -> BatchRequest:
        options = options or GenerationOptions()
        options.check_tokens(engine.config.decoder.vocab_size)
        tokens = tokenize(prompt, engine.tokenizer)
        if not tokens.ids:
            raise RequestError("There is nothing to go on from.", "Give a text that is not empty.")
        context = min(engine.context, most_tokens or engine.context)
        num_tiles = 0 if tiles is None else len(tiles)
        room = check_capacity(tokens, 0, context, num_tiles, engine.config)
        return cls(
            prompt=tokens,
            tiles_u8=tiles,
            tiles=place_tiles(tokens.is_image, tile_digests(tiles)),
            max_tokens=min(room, options.max_tokens or room),
            options=options,
            num_logprobs=num_logprobs,
            grammar=grammar,
        )


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token of an answer. `logprob` and `top` (the likeliest tokens of its place, with theirs)
    are natural logarithms of the model's own probabilities, and there when they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTimings:
    """Seconds of the clock, and what they were spent on.

    queue_s: from submission until it was let in. first_token_s: from submission to the first
    token. total_s: to the end.
    """

    queue_s: float
    first_token_s: float
    total_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    """Tokens of the prompt whose keys and values were there already."""
    num_tiles: int
    num_answer_tokens: int

    @property
    def prompt_s(self) -> float:
        return max(0.0, self.first_token_s - self.queue_s)

    @property
    def answer_s(self) -> float:
        return max(0.0, self.total_s - self.first_token_s)


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer (perhaps none), and the tokens that it is made of."""

    text: str
    tokens: tuple[ChosenToken, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete, or cut off, as `reason` says."""

    reason: FinishReason
    timings: BatchTimings


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer. `error` None: a defect of ours, which the log has."""

    error: IvlError | None


Event: TypeAlias = Piece | Ended | Failed
Listener: TypeAlias = Callable[[Event], None]
"""Called by the engine's thread; it must not block. Last comes one `Ended` or `Failed`."""
