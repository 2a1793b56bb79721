"""The table of the seven sizes against published counts and against the models built from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivl.config import ModelConfig, parse_config
from ivl.family import (
    FAMILY,
    INTERNVIT_6B,
    INTERNVIT_300M,
    Size,
    find,
    recognise,
)
from ivl.footprint.tensors import num_parameters, parameters
from ivl.model.build import empty_model

GOLDEN = Path(__file__).parent / "golden"
# Billions of parameters on the model cards of OpenGVLab, and of the language models.
MODEL_CARDS = {"1b": 0.938, "2b": 2.21, "4b": 3.71, "8b": 8.08, "26b": 25.5}
MODEL_CARDS |= {"38b": 38.4, "78b": 78.4}
by_name = pytest.mark.parametrize("size", FAMILY, ids=lambda size: size.name)


@by_name
def test_parameters_are_those_of_the_model_card(size: Size) -> None:
    assert num_parameters(size.config) == pytest.approx(MODEL_CARDS[size.name] * 1e9, rel=0.005)


@by_name
def test_towers_have_their_published_size(size: Size) -> None:
    published = {INTERNVIT_300M: 0.304e9, INTERNVIT_6B: 5.54e9}
    assert parameters(size.config)["vision"] == pytest.approx(published[size.vision], rel=0.005)


def count(config: ModelConfig) -> tuple[int, int, int]:
    model = empty_model(config)
    parts = (model.vision, model.projector, model.decoder)
    return tuple(sum(p.numel() for p in part.parameters()) if part else 0 for part in parts)


@by_name
def test_what_is_counted_is_what_is_built(size: Size) -> None:
    counted = parameters(size.config)
    assert count(size.config) == tuple(counted[p] for p in ("vision", "projector", "decoder"))
    assert sum(count(size.config)) == num_parameters(size.config)


def test_other_shapes_are_counted_too() -> None:
    raw = json.loads((GOLDEN / "internvit-6b-like_internlm2" / "config.json").read_text())
    tied = json.loads((GOLDEN / "internvit-300m-like_qwen2" / "config.json").read_text())
    tied["llm_config"] |= {"tie_word_embeddings": True, "head_dim": 48}
    for config in map(parse_config, (raw, tied, tied["llm_config"])):
        assert sum(count(config)) == num_parameters(config)
        assert recognise(config) is None


def test_sizes_are_found_by_every_name_they_go_by() -> None:
    for name in ("78b", "78B", "InternVL2_5-78B", "OpenGVLab/InternVL2_5-78B"):
        found = find(name)
        assert found is not None
        assert found.hub_id == "OpenGVLab/InternVL2_5-78B"
    assert find("77b") is None
    assert find("somebody/InternVL2_5-78B-finetuned") is None


def test_the_26b_turns_as_its_base_does() -> None:
    """internlm2_5-20b-chat's config.json: rope_theta 50000000, dynamic with factor 2.5; the smaller
    ones have 1000000 and 2.0."""
    turning = {
        size.name: (size.decoder.rope_theta, size.decoder.rope_factor)
        for size in FAMILY
        if size.decoder.architecture == "internlm2"
    }
    assert turning == {"2b": (1e6, 2.0), "8b": (1e6, 2.0), "26b": (5e7, 2.5)}
