"""What goes into the first decoder layer: word embeddings with image features in their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ivl.calibrate.sequences import CalibrationSequence
from ivl.family import vision_parameters
from ivl.model.build import Weights, empty_model
from ivl.model.internvl import InternVL

_FLOAT32_PARAMETERS = 1_000_000_000
"""Vision towers up to this size are computed in float32, larger ones in bfloat16."""

_TILES_AT_ONCE = 2


def embed_sequences(
    weights: Weights,
    sequences: Sequence[CalibrationSequence],
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Tensor]:
    """Embeddings float32 (1, num_tokens, hidden) of every sequence.

    The vision tower and the projector are loaded for it, and let go again; the decoder is not.
    """
    embeddings = _embed_words(weights, sequences)
    seen = [(s, x) for s, x in zip(sequences, embeddings, strict=True) if s.tiles is not None]
    if not seen:
        return embeddings
    model = _seeing_part(weights)
    for number, (sequence, x) in enumerate(seen):
        report("looking at images", number, len(seen))
        features = model.encode_tiles(torch.from_numpy(sequence.tiles), _TILES_AT_ONCE)
        x[0, torch.tensor(sequence.prompt.is_image)[: x.shape[1]]] = features.flatten(0, 1).float()
    report("looking at images", len(seen), len(seen))
    return embeddings


def _embed_words(weights: Weights, sequences: Sequence[CalibrationSequence]) -> list[Tensor]:
    table = weights.read_combined(weights.table["decoder.embed.weight"])
    ids = (torch.tensor(s.prompt.ids[: s.num_tokens]) for s in sequences)
    return [table[some].float()[None] for some in ids]


def _seeing_part(weights: Weights) -> InternVL:
    """The model without its decoder, but for the norm that tells its type and device."""
    vision = weights.config.vision
    small = vision is not None and vision_parameters(vision) <= _FLOAT32_PARAMETERS
    dtype = torch.float32 if small else torch.bfloat16
    model = empty_model(weights.config)
    tensors = {
        ours: weights.read_combined(source).to(dtype, copy=True)
        for ours, source in weights.table.items()
        if ours.startswith(("vision.", "projector.", "decoder.norm."))
    }
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval().requires_grad_(False)
