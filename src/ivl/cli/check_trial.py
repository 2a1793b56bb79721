"""`ivl check` of a model alone: pages and texts as people show them to it.

A model whose numbers are too large for float16 has weights that are finite, and answers an easy
prompt: it takes real tokens, read and written, to meet those at which it fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ivl.config import ModelConfig
    from ivl.measure.sequences import TokenizedSample
    from ivl.model.internvl import InternVL
    from ivl.prompt.tokenizer import Tokenizer

TRIAL_TOKENS = 1024
"""The longest page and its text, beside one tile."""
NUM_PAGES = 2
NUM_WRITTEN = 16
QUESTION = "What is this?"


def try_out(network: InternVL, tokenizer: Tokenizer, context: int) -> tuple[int, int]:
    """How many tokens were read and written, with finite logits at all of them.

    CheckpointError when they are not.
    """
    from ivl.measure.integrity import run_samples

    samples = list(_samples(network.config, tokenizer, context))
    return run_samples(network, samples), _write(network, tokenizer, context, samples)


def _samples(config: ModelConfig, tokenizer: Tokenizer, context: int) -> Iterator[TokenizedSample]:
    """Bundled pages and a text, as far as the context holds them."""
    from ivl.errors import CapacityError
    from ivl.measure.data import bundled_samples
    from ivl.measure.sequences import tokenize_samples

    texts = bundled_samples(has_vision=False)[:1]
    pages = bundled_samples(has_vision=True)
    for sample in [*texts, *(pages[:NUM_PAGES] if config.vision else [])]:
        try:
            found = tokenize_samples([sample], config, tokenizer, context=context, max_tiles=1)
            yield from list(found)[:1]
        except CapacityError:
            pass  # a page of more tokens than this model can have


def _write(
    network: InternVL, tokenizer: Tokenizer, context: int, samples: list[TokenizedSample]
) -> int:
    """Tokens written about the last of the samples. CheckpointError when one cannot be chosen."""
    from ivl.engine.engine import Engine
    from ivl.engine.options import GenerationOptions
    from ivl.errors import CheckpointError, NonFiniteError
    from ivl.measure.integrity import not_finite_hint
    from ivl.prompt.template import user_message

    sample = samples[-1].sample if samples else None
    images = sample.images if sample else ()
    messages = (sample.messages if sample else ()) or (user_message(QUESTION),)
    engine = Engine(network, tokenizer, context=context, vision_batch=1)
    options = GenerationOptions(max_tokens=NUM_WRITTEN)
    generation = engine.conversation().resume(messages, images, max_tiles=1, options=options)
    try:
        return len(generation.result().tokens)
    except NonFiniteError as error:
        raise CheckpointError(error.message, not_finite_hint(network.dtype)) from None
