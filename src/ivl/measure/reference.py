"""Compares what a model computes with a file of reference outputs.

The file is a safetensors file that another implementation wrote (see `ivl.measure.record`):

    tiles_u8        uint8 (n, tile_px, tile_px, 3)
    input_ids       integer (tokens,), with one id in the places of image tokens
    image_features  float (n, tokens_per_tile, hidden)
    last_logits     float (k, vocab), of the last k positions of the prompt
    greedy          integer (m,), the tokens that follow, each the likeliest

The id that stands for image tokens is `image_token_id` in the file's metadata, and the last id of
the vocabulary where the metadata are silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ivl.checkpoint.safetensors import read_header
from ivl.config import ModelConfig
from ivl.errors import CheckpointError, UnsupportedError
from ivl.model.cache import KVCache
from ivl.model.internvl import InternVL

IMAGE_TOKEN_KEY = "image_token_id"
TENSORS = ("tiles_u8", "input_ids", "image_features", "last_logits", "greedy")

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative error by the type that the model computes in, for references in float32.

float32 differs by about 1e-6 when only the order of sums does; 1e-3 leaves room for other kernels.
bfloat16 rounds to 8 bits at every step, and the errors add up over the layers: random models of the
family's depths (45 + 48 layers) come out 2.5e-2 away, float16 with its 11 bits an eighth of that.
A small mistake in one layer gives about 2e-2, so only float32 finds every one.
"""

REPAIR = "Record it again with `ivl check MODEL --record FILE`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The tensors of a reference file; ids are int64, floats float32."""

    tiles_u8: Tensor
    input_ids: Tensor
    image_token_id: int
    image_features: Tensor
    last_logits: Tensor
    greedy: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """One quantity. `relative_error` is norm(ours - reference) / norm(reference).

    For the greedy tokens it is the share of tokens that differ, and `agrees` also when each of
    them is a near tie, which `detail` then says.
    """

    quantity: str
    relative_error: float
    agrees: bool
    detail: str = ""


def read_reference(file: Path, config: ModelConfig) -> Reference:
    """Reads a reference file for a model of this configuration.

    CheckpointError when it is damaged, or of a model of other shapes.
    """
    if config.vision is None:
        raise UnsupportedError("This is a text-only model: references are of models that see.")
    if not file.is_file():
        raise CheckpointError(f"There is no reference file {file}.", REPAIR)
    missing = [name for name in TENSORS if name not in read_header(file)]
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}: it is no reference.", REPAIR)
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in TENSORS}
            image_id = (content.metadata() or {}).get(IMAGE_TOKEN_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read: {error}.", REPAIR) from None
    vocab = config.decoder.vocab_size
    if image_id is not None and not (image_id.isascii() and image_id.isdigit()):
        raise CheckpointError(f"{file}: {IMAGE_TOKEN_KEY} is {image_id!r}, no token id.", REPAIR)
    reference = Reference(
        tiles_u8=tensors["tiles_u8"],
        input_ids=tensors["input_ids"].long(),
        image_token_id=vocab - 1 if image_id is None else int(image_id),
        image_features=tensors["image_features"].float(),
        last_logits=tensors["last_logits"].float(),
        greedy=tensors["greedy"].long(),
    )
    _check_shapes(reference, config, file)
    return reference


def _check_shapes(reference: Reference, config: ModelConfig, file: Path) -> None:
    num_tiles, px, decoder = reference.tiles_u8.shape[:1], config.tile_px, config.decoder
    wanted = {
        "tiles_u8": (*num_tiles, px, px, 3),
        "image_features": (*num_tiles, config.tokens_per_tile, decoder.hidden_size),
        "last_logits": (*reference.last_logits.shape[:1], decoder.vocab_size),
        "input_ids": (reference.input_ids.numel(),),
        "greedy": (reference.greedy.numel(),),
    }
    for name, shape in wanted.items():
        found = tuple(getattr(reference, name).shape)
        if found != shape:
            raise CheckpointError(
                f"{file}: {name} is of shape {list(found)}, and this model makes {list(shape)}.",
                "The reference is of another model.",
            )
    if reference.tiles_u8.dtype != torch.uint8:
        raise CheckpointError(f"{file}: tiles_u8 must be of type uint8.", REPAIR)
    ids = torch.cat([reference.input_ids, reference.greedy])
    if not ids.numel() or ids.min() < 0 or ids.max() >= decoder.vocab_size:
        raise CheckpointError(f"{file}: its tokens are not of this vocabulary.", REPAIR)
    if not 1 <= len(reference.last_logits) <= len(reference.input_ids):
        raise CheckpointError(f"{file}: last_logits are of more positions than there are.", REPAIR)


@torch.inference_mode()
def deviations(
    model: InternVL, reference: Reference, *, tolerance: float | None = None, vision_batch: int = 4
) -> list[Deviation]:
    """Image features, logits and greedy tokens of a model beside those of a reference.

    `tolerance` by default is that of the model's type, see `TOLERANCE`. The logits follow from
    the model's own features. At every greedy step the model is given the reference's tokens, so
    that each step is compared for itself.
    """
    tolerance = TOLERANCE[model.dtype] if tolerance is None else tolerance
    features = model.encode_tiles(reference.tiles_u8, vision_batch)
    ids = reference.input_ids.to(model.device)
    cache = model.new_cache(len(ids) + len(reference.greedy))
    embeddings = model.embed(ids, ids == reference.image_token_id, features)
    logits = model.prefill(embeddings, cache, num_logits=len(reference.last_logits)).cpu()
    compared = [
        _compare("image features", features.float().cpu(), reference.image_features, tolerance),
        _compare("logits", logits, reference.last_logits, tolerance),
    ]
    largest = float((logits - reference.last_logits).abs().max()) if compared[1].agrees else 0.0
    return [*compared, _compare_greedy(model, cache, logits[-1], reference.greedy, largest)]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """norm(ours - theirs) / norm(theirs); infinite for a reference of zeros that is not met."""
    difference, norm = float((ours - theirs).norm()), float(theirs.norm())
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / norm


def _compare(quantity: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Deviation:
    error = relative_error(ours, theirs)
    # Written so that NaN, which compares false, does not agree.
    return Deviation(quantity=quantity, relative_error=error, agrees=error <= tolerance)


def _compare_greedy(
    model: InternVL, cache: KVCache, logits: Tensor, greedy: Tensor, largest_error: float
) -> Deviation:
    """Another token than the reference's is a near tie if the errors seen in the logits explain it.

    If we prefer one token by `gap` and the reference prefers the other, then one of the two logits
    is off by at least half of `gap`.
    """
    different: list[str] = []
    agrees = True
    for step, wanted in enumerate(greedy.tolist()):
        if step:
            logits = model.step(int(greedy[step - 1]), cache).cpu()
        chosen = int(logits.argmax())
        if chosen == wanted:
            continue
        gap = float(logits[chosen] - logits[wanted])
        near_tie = gap <= 2 * largest_error
        agrees = agrees and near_tie
        different.append(
            f"token {step + 1} is {chosen} and not {wanted}, whose logit is {gap:.2g} lower"
            + (" (a near tie)" if near_tie else "")
        )
    share = len(different) / max(1, len(greedy))
    detail = f"{len(greedy) - len(different)} of {len(greedy)} equal"
    if different:
        detail += f"; {different[0]}"
    return Deviation(quantity="greedy tokens", relative_error=share, agrees=agrees, detail=detail)
