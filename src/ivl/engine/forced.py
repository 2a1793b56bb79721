"""Samples of data as the tokens that a model reads: the prompt, and the answer that is known.

The answer is read, not written, after the prompt: every position says what the model would have
written there (teacher forcing).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ivl.config import ModelConfig
from ivl.engine.request import MaxTiles, prepare_images, tokenize
from ivl.errors import CapacityError, UnsupportedError
from ivl.evaluate.data import Sample, TokenizedSample
from ivl.prompt.template import get_template, render, user_message
from ivl.prompt.tokenizer import Tokenizer

TEXT_WINDOW_TOKENS = 512
"""Plain text is read in pieces of at most so many tokens, each for itself."""


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
        if sample.question is None:
            yield from _windows(sample, tokenizer, min(context, TEXT_WINDOW_TOKENS))
        else:
            yield _question(sample, config, tokenizer, context, max_tiles)


def _question(
    sample: Sample,
    config: ModelConfig,
    tokenizer: Tokenizer,
    context: int,
    max_tiles: MaxTiles,
) -> TokenizedSample:
    assert sample.question is not None
    images = [] if sample.image is None else [sample.image]
    if images and config.vision is None:
        raise UnsupportedError(
            f"{sample.name} is an image, and this is a text-only model.",
            f"Give it .txt files, or questions without images. {config.blind_hint}"
            if config.layout == "gguf"
            else "Give it .txt files, or questions without images.",
        )
    tiles, tiles_per_image = prepare_images(images, config, max_tiles)
    template = get_template(config.template, config.system)
    prompt = render(
        [user_message(sample.question, len(images))],
        template=template,
        tiles_per_image=tiles_per_image,
        tokens_per_tile=config.tokens_per_tile if images else 0,
    )
    tokens = tokenize(prompt, tokenizer)
    answer = None
    if sample.answer is not None:
        end = tokenizer.control(template.stop_control[0])
        answer = [*tokenizer.encode_text(sample.answer), end]
    needed = len(tokens) + len(answer or [])
    if needed >= context:
        raise CapacityError(
            f"{sample.name} needs {needed} tokens, and the context holds {context}.",
            "Give fewer tiles (`max_tiles`), or shorter texts.",
        )
    return TokenizedSample(
        sample=sample,
        prompt_ids=tokens.ids,
        is_image=tokens.is_image,
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
