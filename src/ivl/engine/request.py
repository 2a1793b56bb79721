"""What is asked of the engine: a prompt that was checked and made ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions
from ivl.engine.prompt_builder import (
    MaxTiles,
    TokenizedPrompt,
    build_prompt,
    check_capacity,
    prepare_images,
    tokenize,
)
from ivl.engine.sequence import Tile, place_tiles
from ivl.errors import RequestError
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.prompt.template import Message, Text

if TYPE_CHECKING:
    from ivl.engine.conversation import Conversation
    from ivl.engine.engine import Engine


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
        engine: Engine,
        messages: Sequence[Message],
        images: Sequence[Any] = (),
        *,
        after: Conversation | None = None,
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
        engine: Engine,
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
        engine: Engine,
        prompt: TokenizedPrompt,
        tiles: np.ndarray | None,
        asked: _Asked,
        after: Conversation | None = None,
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
