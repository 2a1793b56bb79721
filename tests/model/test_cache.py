"""Sequences that share a store: a batch computes what each of them computes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ivl.config import DecoderConfig, ModelConfig
from ivl.errors import CapacityError
from ivl.kv import BLOCK_TOKENS, KV_TYPES, KVType
from ivl.model.cache import KVCache, KVStore, Segment
from ivl.model.internvl import InternVL
from tests.random_model import random_model

CONFIG = ModelConfig(
    vision=None,
    decoder=DecoderConfig(
        architecture="qwen2",
        hidden_size=128,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=101,
        norm_eps=1e-6,
        rope_theta=1e4,
        max_position_embeddings=1024,
        qkv_bias=True,
    ),
    layout="official",
    template="internvl2_5",
    dtype="float32",
)
PROMPTS = [torch.arange(first, first + count) % 101 for first, count in ((3, 40), (9, 1), (5, 71))]


@pytest.fixture(scope="module")
def model() -> InternVL:
    return random_model(CONFIG, dtype=torch.float32)


def alone(model: InternVL, ids: Tensor) -> Tensor:
    """Logits after each token of a sequence."""
    return model.decoder.lm_head(model.decoder(model.decoder.embed(ids[None]))[0])


def scattered(store: KVStore, count: int, first: int) -> KVCache:
    """A sequence whose blocks are no neighbours."""
    return KVCache(store, [first + 3 * i for i in range(count)])


@torch.inference_mode()
def test_a_batch_computes_what_its_sequences_compute_alone(model: InternVL) -> None:
    """Prompts of several lengths, then two steps; blocks of all sequences lie among each other."""
    store = model.new_store(12)
    caches = [scattered(store, 3, first) for first in range(3)]
    sequences = list(PROMPTS)
    segments = [Segment(c, len(ids)) for c, ids in zip(caches, sequences, strict=True)]
    logits = model.extend(model.decoder.embed(torch.cat(sequences)), segments, [1, 1, 2])
    wanted = [alone(model, ids) for ids in sequences]
    expected = torch.cat([wanted[0][-1:], wanted[1][-1:], wanted[2][-2:]])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for token in (17, 80):
        sequences = [torch.cat([ids, torch.tensor([token])]) for ids in sequences]
        x = model.decoder.embed(torch.tensor([token] * 3))
        logits = model.extend(x, [Segment(c, 1) for c in caches], [1, 1, 1])
        expected = torch.stack([alone(model, ids)[-1] for ids in sequences])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_shared_beginning_is_read_once(model: InternVL) -> None:
    """Two sequences share a full block, and go on in blocks of their own."""
    store = model.new_store(6)
    ids = torch.arange(BLOCK_TOKENS + 8) % 101
    first = KVCache(store, [4, 1])
    model.extend(model.decoder.embed(ids), [Segment(first, len(ids))], [0])
    second = KVCache(store, [4, 0])
    second.length = BLOCK_TOKENS
    tail = torch.tensor([7, 8, 9])
    x = model.decoder.embed(torch.cat([tail, tail]))
    logits = model.extend(x, [Segment(second, 3), Segment(first, 3)], [1, 1])
    expected = [alone(model, torch.cat([ids[:n], tail]))[-1] for n in (BLOCK_TOKENS, len(ids))]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv", KV_TYPES)
@torch.inference_mode()
def test_a_narrower_cache_is_smaller_and_nearly_as_exact(model: InternVL, kv: KVType) -> None:
    ids = PROMPTS[2]
    wanted = alone(model, ids)[-1]
    cache = model.new_cache(len(ids) + 1, kv)
    model.prefill(model.decoder.embed(ids[None, :-1]), cache, chunk_tokens=13)
    logits = model.step(int(ids[-1]), cache)
    error = (logits - wanted).norm() / wanted.norm()
    assert error < {"32bit": 1e-5, "16bit": 1e-3, "8bit": 1e-2}[kv]
    bytes_per_number = cache.store.num_bytes / (2 * 2 * 2 * 32 * BLOCK_TOKENS * 3)
    assert bytes_per_number == {"32bit": 4, "16bit": 2, "8bit": 1.125}[kv]


@torch.inference_mode()
def test_a_batch_with_a_full_cache_changes_nothing(model: InternVL) -> None:
    store = model.new_store(3)
    roomy, full = KVCache(store, [0, 1]), KVCache(store, [2], capacity=4)
    x = model.decoder.embed(torch.arange(10))
    with pytest.raises(CapacityError, match="5 tokens, and the cache holds 4"):
        model.extend(x, [Segment(roomy, 5), Segment(full, 5)], [1, 1])
    assert roomy.length == full.length == 0


@torch.inference_mode()
def test_an_odd_head_has_one_scale() -> None:
    decoder = replace(CONFIG.decoder, head_dim=20, num_heads=2)
    model = random_model(replace(CONFIG, decoder=decoder), dtype=torch.float32)
    cache = model.new_cache(8, "8bit")
    ids = torch.arange(6)
    logits = model.prefill(model.decoder.embed(ids[None]), cache)
    wanted = alone(model, ids)[-1]
    assert (logits - wanted).norm() / wanted.norm() < 2e-2
