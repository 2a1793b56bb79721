"""Samples of data as the tokens that a model reads: the prompt, and the answer that is known.

The answer is read, not written, after the prompt: every position says what the model would have
written there (teacher forcing).

What an image puts before the decoder is unlike any text: 256 vectors a tile that come out of the
projector, often with a few channels much larger than in word embeddings. What is calibrated on text
alone leaves those channels to chance (lmdeploy#2650, InternVL#876).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ivl.config import ModelConfig
from ivl.engine.prompt_builder import MaxTiles, TokenizedPrompt, build_prompt, prepare_images
from ivl.errors import CapacityError, RequestError, UnsupportedError
from ivl.measure.data import Sample
from ivl.prompt.template import get_template
from ivl.prompt.tokenizer import Tokenizer

TEXT_WINDOW_TOKENS = 512
"""Plain text is compared in pieces of at most so many tokens, each for itself."""
CALIBRATION_TOKENS = 2048
"""Of a sample that is calibrated with, unless another limit is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """What a model is given of a sample.

    prompt_ids: the tokens before the answer, and is_image: which of them are places of image
    features. answer_ids: the truth and the token that ends it, to be read after the prompt; None
    when there is none. tiles_u8: uint8 (n, tile_px, tile_px, 3), or None.
    """

    sample: Sample
    prompt_ids: list[int]
    is_image: list[bool]
    answer_ids: list[int] | None = None
    tiles_u8: np.ndarray | None = None

    @property
    def whole(self) -> TokenizedPrompt:
        """Prompt and answer, in one."""
        answer = self.answer_ids or []
        return TokenizedPrompt(
            ids=self.prompt_ids + answer, is_image=self.is_image + [False] * len(answer)
        )


def tokenize_samples(
    samples: Iterable[Sample],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    context: int,
    max_tiles: MaxTiles = None,
) -> Iterator[TokenizedSample]:
    """One after the other, so that the tiles of one image are held at a time.

    A text makes as many as it has windows. `context` is the most tokens of prompt and answer.
    CapacityError when they are more, UnsupportedError for an image and a model that cannot see.
    """
    for sample in samples:
        if sample.is_text:
            yield from _windows(sample, tokenizer, min(context, TEXT_WINDOW_TOKENS))
            continue
        found = _conversation(sample, config, tokenizer, max_tiles)
        if len(found.whole) >= context:
            raise CapacityError(
                f"{sample.name} needs {len(found.whole)} tokens, and the context holds {context}.",
                "Give fewer tiles (`max_tiles`), or shorter texts.",
            )
        yield found


def calibration_samples(
    samples: Iterable[Sample],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    max_tokens: int = CALIBRATION_TOKENS,
) -> list[TokenizedSample]:
    """Samples of at most `max_tokens` tokens: long texts give several, of others the end is left
    out, never a part of an image.

    Images get as many tiles as fit in half of that. RequestError where the images alone are more,
    and for data without tokens; UnsupportedError for an image and a model that cannot see.
    """
    context = min(max_tokens, config.decoder.max_position_embeddings)
    found: list[TokenizedSample] = []
    for sample in samples:
        if sample.is_text:
            found += _windows(sample, tokenizer, context)
            continue
        limits = _tiles_within(config, context // 2, len(sample.images))
        one = _conversation(sample, config, tokenizer, limits)
        # Images come first in a turn, so that only a conversation of many can end within one.
        if any(one.is_image[context:]):
            raise RequestError(
                f"{sample.name}: the images alone have more than {context} tokens.",
                "Take fewer images in one sample.",
            )
        found.append(
            TokenizedSample(
                sample=sample,
                prompt_ids=one.prompt_ids[:context],
                is_image=one.is_image[:context],
                answer_ids=(one.answer_ids or [])[: max(0, context - len(one.prompt_ids))] or None,
                tiles_u8=one.tiles_u8,
            )
        )
    if not found:
        raise RequestError("The calibration data holds no tokens.")
    return found


def _conversation(
    sample: Sample, config: ModelConfig, tokenizer: Tokenizer, max_tiles: MaxTiles
) -> TokenizedSample:
    if sample.images and config.vision is None:
        raise UnsupportedError(
            f"{sample.name} is an image, and this is a text-only model.",
            "Give it .txt files, or questions without images."
            + (f" {config.blind_hint}" if config.layout == "gguf" else ""),
        )
    tiles, tiles_per_image = prepare_images(sample.images, config, max_tiles)
    prompt = build_prompt(sample.messages, config, tokenizer, tiles_per_image)
    answer = None
    if sample.answer is not None:
        end = tokenizer.control(get_template(config.template).stop_control[0])
        answer = [*tokenizer.encode_text(sample.answer), end]
    return TokenizedSample(
        sample=sample,
        prompt_ids=prompt.ids,
        is_image=prompt.is_image,
        answer_ids=answer,
        tiles_u8=tiles,
    )


def _windows(sample: Sample, tokenizer: Tokenizer, window: int) -> Iterator[TokenizedSample]:
    """The first token of a window is its prompt: the beginning of text, or else the text's own."""
    assert sample.answer is not None
    ids = tokenizer.encode_text(sample.answer)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    step = max(2, window) - len(bos)
    for start in range(0, len(ids), step):
        piece = [*bos, *ids[start : start + step]]
        if len(piece) > 1:
            yield TokenizedSample(
                sample=sample, prompt_ids=piece[:1], is_image=[False], answer_ids=piece[1:]
            )


def _tiles_within(config: ModelConfig, num_tokens: int, num_images: int) -> list[int] | None:
    """One limit for each image; a thumbnail comes on top, and one tile is the least."""
    if not num_images or config.vision is None:
        return None
    each = num_tokens // num_images // config.tokens_per_tile
    if config.use_thumbnail and each > 1:
        each -= 1
    return [min(config.max_tiles, max(1, each))] * num_images
