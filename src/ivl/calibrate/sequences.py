"""Samples as the model reads them: token ids, tiles, and embeddings with image features in place.

What an image puts before the decoder is unlike any text: 256 vectors a tile that come out of the
projector, often with a few channels much larger than in word embeddings. Scales that were found on
text alone leave those channels to chance (lmdeploy#2650, InternVL#876).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ivl.calibrate.samples import Sample
from ivl.config import ModelConfig
from ivl.engine.request import TokenizedPrompt, prepare_images, tokenize
from ivl.errors import RequestError
from ivl.prompt.template import Text, get_template, render
from ivl.prompt.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSequence:
    """One sample, tokenized. `tiles` are uint8 (n, tile_px, tile_px, 3), or None without images.

    `num_tokens` of the ids count: the end of a long answer is left out, never part of an image.
    """

    name: str
    prompt: TokenizedPrompt
    tiles: np.ndarray | None
    num_tokens: int


def make_sequences(
    samples: Sequence[Sample],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
) -> list[CalibrationSequence]:
    """A sequence of at most `max_tokens` tokens for every sample; long texts give several.

    Images get as many tiles as fit in half of that. RequestError for images that cannot be read,
    or that a text-only model was given.
    """
    max_tokens = min(max_tokens, config.decoder.max_positions)
    sequences = []
    for sample in samples:
        if sample.text:
            sequences += _of_text(sample, tokenizer, max_tokens)
        else:
            sequences.append(_of_conversation(sample, config, tokenizer, max_tokens))
    if not any(sequence.num_tokens for sequence in sequences):
        raise RequestError("The calibration data holds no tokens.")
    return sequences


def _of_text(sample: Sample, tokenizer: Tokenizer, max_tokens: int) -> list[CalibrationSequence]:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = tokenize((Text(sample.text),), tokenizer, bos=False).ids
    step = max_tokens - len(bos)
    return [
        CalibrationSequence(
            name=sample.name,
            prompt=TokenizedPrompt(ids=part, is_image=[False] * len(part)),
            tiles=None,
            num_tokens=len(part),
        )
        for part in (bos + ids[start : start + step] for start in range(0, len(ids), step))
    ]


def _of_conversation(
    sample: Sample, config: ModelConfig, tokenizer: Tokenizer, max_tokens: int
) -> CalibrationSequence:
    tiles, tiles_per_image = None, []
    if sample.images:
        budget = _tiles_within(config, max_tokens // 2, len(sample.images))
        tiles, tiles_per_image = prepare_images(sample.images, config, budget)
    prompt = render(
        sample.messages,
        template=get_template(config.template, config.system),
        tiles_per_image=tiles_per_image,
        tokens_per_tile=config.tokens_per_tile if config.vision else 0,
        add_generation_prompt=sample.messages[-1].role == "user",
    )
    tokens = tokenize(prompt, tokenizer)
    # Images come first in a turn, so that only a conversation of many can end within one.
    length = min(len(tokens), max_tokens)
    if any(tokens.is_image[length:]):
        raise RequestError(
            f"{sample.name}: the images alone have more than {max_tokens} tokens.",
            "Take fewer images in one sample.",
        )
    return CalibrationSequence(name=sample.name, prompt=tokens, tiles=tiles, num_tokens=length)


def _tiles_within(config: ModelConfig, num_tokens: int, num_images: int) -> list[int]:
    """One limit for each image; a thumbnail comes on top, and one tile is the least."""
    each = num_tokens // num_images // config.tokens_per_tile
    if config.use_thumbnail and each > 1:
        each -= 1
    return [min(config.max_tiles, max(1, each))] * num_images
