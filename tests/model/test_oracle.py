"""The network against transformers, for random weights, and against the official outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivl.config import read_config
from ivl.model.build import build_model
from ivl.model.internvl import InternVL

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*/expected.safetensors"))
VARIANTS = [(text, vision) for text in ("qwen2", "llama") for vision in ("layer_norm", "rms_norm")]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def their_outputs(oracle: Any, sample: Any) -> tuple[Tensor, Tensor]:
    """Features and logits of transformers, float32."""
    pixels = sample.pixels.to(oracle.dtype)
    with torch.inference_mode():
        features = oracle.get_image_features(pixels)
        logits = oracle(input_ids=sample.ids[None], pixel_values=pixels).logits[0]
    return getattr(features, "pooler_output", features).float(), logits.float()


def our_outputs(model: InternVL, sample: Any) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        features = model.encode_tiles(sample.tiles_u8)
        return features.float(), model.logits(sample.ids, sample.is_image, features)


@pytest.mark.parametrize(("text", "vision"), VARIANTS)
def test_float32_equals_transformers(
    text: str, vision: str, transformers_internvl: Any, read_saved: Any, sample: Any
) -> None:
    oracle = transformers_internvl(text, vision)
    ours = our_outputs(read_saved(oracle), sample)
    for mine, theirs in zip(ours, their_outputs(oracle, sample), strict=True):
        assert relative_error(mine, theirs) < 1e-5


@pytest.mark.parametrize(("text", "vision"), VARIANTS)
def test_bfloat16_rounds_no_worse_than_transformers(
    text: str, vision: str, transformers_internvl: Any, read_saved: Any, sample: Any
) -> None:
    """Both round everywhere, each in its own order. What counts is the distance to float32."""
    oracle = transformers_internvl(text, vision).bfloat16()
    ours = our_outputs(read_saved(oracle, dtype=torch.bfloat16), sample)
    rounded = their_outputs(oracle, sample)
    exact = their_outputs(oracle.float(), sample)
    for mine, theirs, truth in zip(ours, rounded, exact, strict=True):
        assert relative_error(mine, truth) < 1.3 * relative_error(theirs, truth) < 0.05


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_own_heads_are_told_apart(
    tied: bool, transformers_internvl: Any, read_saved: Any, sample: Any
) -> None:
    oracle = transformers_internvl(tie_word_embeddings=tied)
    model = read_saved(oracle)
    assert (model.decoder.lm_head.weight is model.decoder.embed.weight) == tied
    assert relative_error(our_outputs(model, sample)[1], their_outputs(oracle, sample)[1]) < 1e-5


def test_a_head_of_its_own_counts_whatever_the_flag_says(
    transformers_internvl: Any, read_saved: Any, sample: Any
) -> None:
    """transformers sets the flag by default, and writes the head all the same when it differs."""
    oracle = transformers_internvl()
    oracle.config.tie_word_embeddings = True
    model = read_saved(oracle)
    assert relative_error(our_outputs(model, sample)[1], their_outputs(oracle, sample)[1]) < 1e-5


def test_both_generations_of_names_are_read(
    transformers_internvl: Any, read_saved: Any, sample: Any, tmp_path: Path
) -> None:
    """`language_model.model.*` in files of transformers 4.51, `model.language_model.*` later."""
    oracle = transformers_internvl()
    expected = their_outputs(oracle, sample)[1]
    read_saved(oracle)
    file = tmp_path / "model.safetensors"
    saved, live = load_file(file), dict(oracle.state_dict())
    assert "language_model.model.norm.weight" in saved
    assert "model.language_model.norm.weight" in live
    for tensors in (saved, live):
        save_file(tensors, file)
        model = build_model(read_config(tmp_path), tmp_path, dtype=torch.float32)
        assert relative_error(our_outputs(model, sample)[1], expected) < 1e-5


DYNAMIC = {
    "max_position_embeddings": 24,
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
}


def test_dynamic_rope_beyond_the_trained_length_equals_transformers(
    transformers_internvl: Any, read_saved: Any, sample: Any
) -> None:
    oracle = transformers_internvl("llama", **DYNAMIC)
    model = read_saved(oracle)
    assert len(sample.ids) > model.config.decoder.max_position_embeddings
    ours, theirs = our_outputs(model, sample)[1], their_outputs(oracle, sample)[1]
    assert relative_error(ours, theirs) < 1e-5
    plain = transformers_internvl("llama", max_position_embeddings=24)
    assert relative_error(their_outputs(plain, sample)[1], theirs) > 1e-2


def test_dynamic_rope_in_the_cache_equals_transformers(
    transformers_internvl: Any, read_saved: Any, sample: Any
) -> None:
    """Keys stay as they were rotated while the base grows with every token, on both sides."""
    oracle = transformers_internvl("llama", **DYNAMIC)
    model = read_saved(oracle)
    text = sample.ids[~sample.is_image]
    with torch.inference_mode():
        cache = model.new_cache(len(text))
        model.prefill(model.decoder.embed(text[None, :16]), cache)
        theirs = oracle(input_ids=text[None, :16], use_cache=True)
        for token in text[16:]:
            ours = model.step(int(token), cache)
            theirs = oracle(
                input_ids=token.view(1, 1), past_key_values=theirs.past_key_values, use_cache=True
            )
            assert relative_error(ours, theirs.logits[0, -1]) < 1e-5


def test_text_alone_equals_transformers(
    transformers_internvl: Any, read_saved: Any, sample: Any
) -> None:
    oracle = transformers_internvl("llama")
    model, text = read_saved(oracle), sample.ids[~sample.is_image]
    with torch.inference_mode():
        theirs = oracle(input_ids=text[None]).logits[0]
        ours = model.logits(text, torch.zeros_like(text, dtype=torch.bool), None)
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_text_only_model_equals_transformers(kind: str, sample: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24}
    config = AutoConfig.for_model(
        kind, **small, vocab_size=100, tie_word_embeddings=kind == "qwen2"
    )
    oracle = AutoModelForCausalLM.from_config(config).eval()
    oracle.save_pretrained(tmp_path)
    model = build_model(read_config(tmp_path), tmp_path, dtype=torch.float32)
    assert model.vision is None
    with torch.inference_mode():
        ours = model.logits(sample.ids, torch.zeros_like(sample.is_image), None)
        theirs = oracle(input_ids=sample.ids[None]).logits[0]
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("file", GOLDEN, ids=lambda path: path.parent.name)
def test_the_official_outputs_are_reproduced(file: Path) -> None:
    expected = load_file(file)
    model = build_model(read_config(file.parent), file.parent, dtype=torch.float32)
    ids = expected["input_ids"].long()
    with torch.inference_mode():
        features = model.encode_tiles(expected["tiles_u8"])
        assert relative_error(features, expected["image_features"]) < 1e-4
        x = model.embed(ids, ids == model.config.decoder.vocab_size - 1, features)
        cache = model.new_cache(len(ids) + 16)
        logits = model.prefill(x, cache, num_logits=10)
        assert relative_error(logits, expected["last_logits"]) < 1e-4
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < 16:
            tokens.append(int(model.step(tokens[-1], cache).argmax()))
    assert tokens == expected["greedy"].tolist()
