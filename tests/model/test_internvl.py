"""What must not depend on how the work is cut: chunks of a prompt, batches of tiles, the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ivl.config import DecoderConfig, ModelConfig, VisionConfig
from ivl.errors import CapacityError, RequestError, UnsupportedError
from ivl.model.internvl import InternVL
from ivl.model.vision import pixel_shuffle
from tests.random_model import random_model

CONFIG = ModelConfig(
    vision=VisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_layers=2,
        num_heads=3,
        image_px=56,
        patch_px=14,
        norm="layer_norm",
        norm_eps=1e-6,
        qk_norm=False,
        qkv_bias=True,
    ),
    decoder=DecoderConfig(
        architecture="internlm2",
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=100,
        norm_eps=1e-5,
        rope_theta=1e4,
        rope_factor=2.0,
        max_position_embeddings=512,
        qkv_bias=False,
    ),
    layout="official",
    template="internvl2_5",
    dtype="float32",
)


@pytest.fixture(scope="module")
def model() -> InternVL:
    return random_model(CONFIG, dtype=torch.float32)


@pytest.fixture(scope="module")
def long_model() -> InternVL:
    """The same weights, trained on a context that is shorter than the prompt."""
    short = replace(CONFIG, decoder=replace(CONFIG.decoder, max_position_embeddings=24))
    return random_model(short, dtype=torch.float32)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 37, 64])
@pytest.mark.parametrize("which", ["model", "long_model"])
@torch.inference_mode()
def test_chunked_prefill_is_full_prefill(
    which: str, chunk_tokens: int, request: pytest.FixtureRequest, sample: Any
) -> None:
    """Also beyond the trained length, where every chunk must rotate as the whole prompt does."""
    model = request.getfixturevalue(which)
    features = model.encode_tiles(sample.tiles_u8)
    full = model.logits(sample.ids, sample.is_image, features)
    x = model.embed(sample.ids, sample.is_image, features)
    cache = model.new_cache(64)
    chunked = model.prefill(x, cache, chunk_tokens=chunk_tokens, num_logits=38)
    torch.testing.assert_close(chunked, full, rtol=1e-4, atol=1e-4)
    assert cache.length == len(sample.ids)
    some = model.prefill(x, model.new_cache(64), num_logits=5)
    torch.testing.assert_close(some, full[-5:], rtol=1e-4, atol=1e-4)
    last = model.prefill(x, model.new_cache(64), chunk_tokens=chunk_tokens)
    torch.testing.assert_close(last, full[-1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_steps_through_the_cache_are_the_whole_sequence(model: InternVL, sample: Any) -> None:
    features = model.encode_tiles(sample.tiles_u8)
    full = model.logits(sample.ids, sample.is_image, features)
    cache = model.new_cache(len(sample.ids))
    x = model.embed(sample.ids[:20], sample.is_image[:20], features)
    logits = [model.prefill(x, cache)]
    logits += [model.step(int(token), cache) for token in sample.ids[20:]]
    torch.testing.assert_close(torch.stack(logits), full[19:], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_truncated_cache_goes_on_as_if_the_rest_had_never_been(
    model: InternVL, sample: Any
) -> None:
    text = sample.ids[~sample.is_image]
    fresh, cache = (model.new_cache(64) for _ in range(2))
    model.prefill(model.decoder.embed(text[None, :12]), fresh)
    model.prefill(model.decoder.embed(text[None, :25]), cache)
    cache.truncate(12)
    for token in (3, 4):
        torch.testing.assert_close(
            model.step(token, cache), model.step(token, fresh), rtol=1e-4, atol=1e-4
        )


@torch.inference_mode()
def test_a_full_cache_refuses_and_stays_as_it_was(model: InternVL, sample: Any) -> None:
    text = sample.ids[~sample.is_image]
    cache = model.new_cache(12)
    model.prefill(model.decoder.embed(text[None, :10]), cache)
    with pytest.raises(CapacityError, match="15 tokens, and the cache holds 12"):
        model.prefill(model.decoder.embed(text[None, :5]), cache)
    assert cache.length == 10
    fresh = model.new_cache(12)
    model.prefill(model.decoder.embed(text[None, :10]), fresh)
    torch.testing.assert_close(model.step(3, cache), model.step(3, fresh))


@torch.inference_mode()
def test_tiles_one_by_one_are_tiles_together(model: InternVL) -> None:
    tiles = torch.randint(0, 256, (5, 56, 56, 3), dtype=torch.uint8)
    together = model.encode_tiles(tiles, 8)
    assert together.shape == (5, 4, 64)
    for vision_batch in (1, 2, 5):
        torch.testing.assert_close(
            model.encode_tiles(tiles, vision_batch), together, rtol=1e-4, atol=1e-5
        )
    one = torch.cat([model.encode_tiles(tile[None]) for tile in tiles])
    torch.testing.assert_close(one, together, rtol=1e-4, atol=1e-5)
    assert model.encode_tiles(tiles[:0]).shape == (0, 4, 64)


@torch.inference_mode()
def test_later_tokens_do_not_reach_back(model: InternVL, sample: Any) -> None:
    text = sample.ids[~sample.is_image]
    places = torch.zeros_like(text, dtype=torch.bool)
    before = model.logits(text, places, None)
    changed = text.clone()
    changed[20] = (changed[20] + 1) % 99
    after = model.logits(changed, places, None)
    torch.testing.assert_close(after[:20], before[:20])
    assert (after[20:] - before[20:]).abs().amax(-1).min() > 1e-3


@torch.inference_mode()
def test_places_and_features_must_match(model: InternVL, sample: Any) -> None:
    features = model.encode_tiles(sample.tiles_u8)
    for wrong in (features[:1], None):
        with pytest.raises(RequestError, match="8 places"):
            model.embed(sample.ids, sample.is_image, wrong)


@pytest.mark.parametrize(
    "tiles", [torch.zeros(1, 3, 56, 56, dtype=torch.uint8), torch.zeros(1, 56, 56, 3)]
)
def test_other_tiles_are_refused(model: InternVL, tiles: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="Tiles must be uint8"):
        model.encode_tiles(tiles)


def test_a_text_only_model_says_that_it_cannot_see() -> None:
    blind = random_model(replace(CONFIG, vision=None))
    with pytest.raises(UnsupportedError, match="text-only"):
        blind.encode_tiles(torch.zeros(1, 56, 56, 3, dtype=torch.uint8))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("fold", [2, 4])
def test_pixel_shuffle_is_what_a_plain_loop_does(version: str, fold: int) -> None:
    """Token (i, j) holds the patches of its square, row by row; v1 has the square transposed."""
    side, channels = 8, 3
    x = torch.randn(2, side, side, channels)
    small = side // fold
    expected = torch.empty(2, small, small, channels * fold**2)
    for i in range(small):
        for j in range(small):
            square = [x[:, i * fold + a, j * fold + b] for a in range(fold) for b in range(fold)]
            place = (i, j) if version == "v2" else (j, i)
            expected[:, place[0], place[1]] = torch.cat(square, dim=-1)
    torch.testing.assert_close(pixel_shuffle(x, 1 / fold, version), expected)
