"""Whether a model is whole: every weight a number, and every number that it computes.

Names, shapes and lengths are checked whenever a model is loaded; a download can pass those and
still hold garbage, or zeros where its pieces never arrived. Here every value is read, and the model
is tried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ivl.config import ModelConfig
from ivl.engine.conversation import Conversation
from ivl.engine.engine import Engine
from ivl.engine.options import GenerationOptions
from ivl.errors import CapacityError, CheckpointError, NonFiniteError
from ivl.measure.data import (
    Sample,
    TokenizedSample,
    bundled_samples,
    embed,
    tokenize_samples,
)
from ivl.model.internvl import InternVL
from ivl.model.source import ModelSource
from ivl.prompt.template import user_message
from ivl.prompt.tokenizer import Tokenizer, require_image_tokens

CHUNK_VALUES = 1 << 24
"""Values looked at together, so that a large matrix needs no second one beside it."""

TRIAL_TOKENS = 1024
"""The longest page and its text, beside one tile."""
TRIAL_PAGES = 2
TRIAL_BATCH = 4
"""Tiles encoded at once."""
TRIAL_WRITTEN = 16
TRIAL_QUESTION = "What is this?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How many tokens were read and written, with finite logits at all of them."""

    num_read: int
    num_written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReport:
    """What the values of all tensors are. Names are those in the files."""

    num_tensors: int
    num_values: int
    stored_bytes: int
    dtypes: tuple[str, ...]
    not_finite: dict[str, int]
    """Tensors that hold NaN or infinity, and how many of them."""
    only_zeros: tuple[str, ...]
    """Matrices in which no training leaves all values zero."""

    def require_sound(self) -> None:
        """CheckpointError that names the first of the tensors with such values."""
        hint = "The files are damaged: download them again, and compare their sizes or hashes."
        if self.not_finite:
            name, count = next(iter(self.not_finite.items()))
            raise CheckpointError(
                f"{len(self.not_finite)} of {self.num_tensors} tensors hold NaN or infinity: "
                f"{name} does {count} times.",
                hint,
            )
        if self.only_zeros:
            raise CheckpointError(
                f"{len(self.only_zeros)} of {self.num_tensors} tensors hold nothing but zeros: "
                f"{self.only_zeros[0]}.",
                hint,
            )


def scan_weights(
    source: ModelSource, progress: Callable[[int, int], None] | None = None
) -> WeightsReport:
    """Reads every value once, one tensor at a time; the memory of the largest tensor is enough.

    Raises CheckpointError as loading does, for names, types and shapes.
    """
    num_tensors, tensors = source.stored_tensors()
    not_finite: dict[str, int] = {}
    only_zeros: list[str] = []
    num_values = stored_bytes = 0
    dtypes: set[str] = set()
    for done, tensor in enumerate(tensors, start=1):
        bad, zero = _look_at(tensor.values)
        if bad:
            not_finite[tensor.name] = bad
        if zero and tensor.values.ndim > 1:
            only_zeros.append(tensor.name)
        num_values += tensor.values.numel()
        stored_bytes += tensor.num_bytes
        dtypes.add(tensor.dtype)
        if progress:
            progress(done, num_tensors)
    return WeightsReport(
        num_tensors=num_tensors,
        num_values=num_values,
        stored_bytes=stored_bytes,
        dtypes=tuple(sorted(dtypes)),
        not_finite=not_finite,
        only_zeros=tuple(only_zeros),
    )


def _look_at(tensor: Tensor) -> tuple[int, bool]:
    """How many values are NaN or infinite, and whether all are zero."""
    bad, zero = 0, True
    for part in tensor.flatten().split(CHUNK_VALUES):
        bad += part.numel() - int(torch.isfinite(part).sum())
        zero = zero and not bool(part.any())
    return bad, zero


def sample_tile(tile_px: int) -> Tensor:
    """A picture to try a model with: uint8 (1, tile_px, tile_px, 3), two crossing ramps."""
    ramp = torch.linspace(0, 255, tile_px).to(torch.uint8)
    across, down = ramp.expand(tile_px, tile_px), ramp[:, None].expand(tile_px, tile_px)
    return torch.stack([across, down, across.flip(1)], dim=-1)[None]


def run_once(model: InternVL, tokenizer: Tokenizer) -> None:
    """One tile and a few tokens through the whole model.

    Raises CheckpointError when what comes out is not finite.
    """
    ids, tiles = tokenizer.encode_text(TRIAL_QUESTION), None
    is_image = [False] * len(ids)
    if model.config.vision is not None:
        tiles = sample_tile(model.config.tile_px).numpy()
        start, end, context = require_image_tokens(tokenizer)
        num_tokens = model.config.tokens_per_tile
        ids = [start, *[context] * num_tokens, end, *ids]
        is_image = [False, *[True] * num_tokens, False, *is_image]
    shown = Sample(name="a test image")
    run_samples(
        model,
        [TokenizedSample(sample=shown, prompt_ids=ids, is_image=is_image, tiles_u8=tiles)],
    )


def try_out(model: InternVL, tokenizer: Tokenizer, context: int) -> Trial:
    """Pages and texts as people show them to a model, as far as the context holds them.

    A model whose numbers are too large for float16 has weights that are finite, and answers an easy
    prompt: it takes real tokens, read and written, to meet those at which it fails.
    CheckpointError when a logit is not finite.
    """
    samples = list(_trial_samples(model.config, tokenizer, context))
    num_read = run_samples(model, samples)
    shown = samples[-1].sample if samples else Sample(name="nothing")
    engine = Engine(model, tokenizer, context=context, vision_batch=1)
    generation = Conversation(engine).resume(
        shown.messages or [user_message(TRIAL_QUESTION)],
        shown.images,
        max_tiles=1,
        options=GenerationOptions(max_tokens=TRIAL_WRITTEN),
    )
    try:
        num_written = len(generation.result().tokens)
    except NonFiniteError as error:
        raise CheckpointError(error.message, not_finite_hint(model.dtype)) from None
    return Trial(num_read=num_read, num_written=num_written)


def _trial_samples(
    config: ModelConfig, tokenizer: Tokenizer, context: int
) -> Iterator[TokenizedSample]:
    """The beginning of a text, and bundled pages."""
    texts = bundled_samples(has_vision=False)[:1]
    pages = bundled_samples(has_vision=True)[:TRIAL_PAGES] if config.vision else []
    for sample in [*texts, *pages]:
        try:
            found = tokenize_samples([sample], config, tokenizer, context=context, max_tiles=1)
            yield from list(found)[:1]
        except CapacityError:
            pass  # a page of more tokens than this model can have


@torch.inference_mode()
def run_samples(model: InternVL, samples: Iterable[TokenizedSample]) -> int:
    """Reads prompts and their true answers, and looks at the logits of every position: what is too
    large for a type is so at some tokens, and at others not. Returns how many positions there were.

    Raises CheckpointError when what comes out is not finite.
    """
    num_positions = 0
    for sample in samples:
        features, length = sample.see(model, TRIAL_BATCH), len(sample.whole)
        if features is not None:
            _require_finite("image features", features, model.dtype, sample.sample.name)
        x = embed(model, sample.whole, features)
        logits = model.prefill(x, model.new_cache(length), num_logits=length)
        _require_finite("logits", logits, model.dtype, sample.sample.name)
        num_positions += length
    return num_positions


def _require_finite(what: str, values: Tensor, dtype: torch.dtype, source: str) -> None:
    bad = values.numel() - int(torch.isfinite(values).sum())
    if bad:
        raise CheckpointError(
            f"The {what} of {source} hold NaN or infinity: {bad} of {values.numel()} values.",
            not_finite_hint(dtype),
        )


def not_finite_hint(dtype: torch.dtype) -> str:
    """What to do about a model whose weights are finite, and what it computes is not."""
    if dtype == torch.float16:
        return 'Try `dtype="bfloat16"`, whose range is wider than that of float16.'
    return "The weights are finite but not those of a trained model: download them again."
