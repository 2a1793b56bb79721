"""Models that are spread over several devices.

What moves where is tested with torch's meta device in the place of a GPU: it has shapes and no
numbers, and refuses to compute with tensors of another device. What is computed is tested on the
CPU.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ivl
from ivl.config import ModelConfig, read_config
from ivl.kernels import cpu
from ivl.kv import KV_TYPES, KVType
from ivl.model.build import build_model, empty_model, placed
from ivl.model.cache import SplitKVStore, TorchKVStore
from ivl.model.cpu_decoder import CpuKVStore, CpuLayers
from ivl.model.device_map import DeviceMap
from ivl.model.internvl import InternVL
from ivl.model.source import open_source
from tests.model.test_cpu_decoder import WIDE
from tests.random_model import random_model

CONFIG = read_config(Path(ivl.__file__).parent / "assets" / "demo")
HOST, ELSEWHERE = torch.device("cpu"), torch.device("meta")


def with_layers(config: ModelConfig, num_layers: int) -> ModelConfig:
    return replace(config, decoder=replace(config.decoder, num_layers=num_layers))


def spread(config: ModelConfig, devices: DeviceMap) -> InternVL:
    """An empty model with its parameters where they belong."""
    model = empty_model(config)
    for name, parameter in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        there = torch.empty(parameter.shape, device=devices.of(name))
        setattr(model.get_submodule(path), leaf, torch.nn.Parameter(there, requires_grad=False))
    return placed(model, devices)


@pytest.mark.parametrize("kv", KV_TYPES)
def test_hidden_states_follow_the_layers(kv: KVType) -> None:
    devices = DeviceMap(
        embeddings=HOST, layers=(HOST, HOST, ELSEWHERE, ELSEWHERE), head=ELSEWHERE, vision=HOST
    )
    model = spread(with_layers(CONFIG, 4), devices)
    tiles = torch.zeros((3, CONFIG.tile_px, CONFIG.tile_px, 3), dtype=torch.uint8)
    features = model.encode_tiles(tiles, vision_batch=2)
    assert features.device == HOST
    length = 3 * CONFIG.tokens_per_tile
    is_image = torch.ones(length, dtype=torch.bool)
    x = model.embed(torch.zeros(length, dtype=torch.int64), is_image, features)
    cache = model.new_cache(length + 8, kv)
    logits = model.prefill(x, cache)
    assert (logits.device, logits.shape) == (ELSEWHERE, (CONFIG.decoder.vocab_size,))
    assert model.step(1, cache).device == ELSEWHERE
    store = cache.store
    assert isinstance(store, TorchKVStore)
    assert tuple(t.device for t in store._numbers) == devices.layers


def test_the_embeddings_take_features_from_another_device() -> None:
    model = random_model(CONFIG, dtype=torch.float32)
    model.devices = replace(DeviceMap.whole("cpu", CONFIG.decoder.num_layers), vision=ELSEWHERE)
    assert model.vision_device == ELSEWHERE
    assert model.device == HOST


@pytest.mark.skipif(cpu.loaded() is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("num_fused", [1, 2])
def test_layers_on_the_processor_and_the_others_give_what_all_together_give(
    kv: KVType, num_fused: int
) -> None:
    plain = random_model(with_layers(WIDE, 3), dtype=torch.float32)
    parts = copy.deepcopy(plain)
    layers = list(parts.decoder.layers)[:num_fused]
    parts.decoder.fused = CpuLayers(parts.decoder, layers, cpu.extension())  # type: ignore[arg-type]
    caches = [model.new_cache(64, kv) for model in (plain, parts)]
    store = caches[1].store
    assert isinstance(store, SplitKVStore)
    assert isinstance(store.part(num_fused - 1), CpuKVStore)
    assert isinstance(store.part(num_fused), TorchKVStore)
    x = plain.decoder.embed(torch.arange(9))[None]
    first = [model.prefill(x, cache) for model, cache in zip((plain, parts), caches, strict=True)]
    torch.testing.assert_close(first[1], first[0], rtol=1e-3, atol=1e-3)
    then = [model.step(5, cache) for model, cache in zip((plain, parts), caches, strict=True)]
    torch.testing.assert_close(then[1], then[0], rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(cpu.loaded() is None, reason="the C++ extension is not built")
def test_a_store_of_parts_holds_what_they_hold() -> None:
    model = random_model(with_layers(WIDE, 3), dtype=torch.float32)
    layers = list(model.decoder.layers)[:1]
    model.decoder.fused = CpuLayers(model.decoder, layers, cpu.extension())  # type: ignore[arg-type]
    store = model.new_store(3)
    store.reserve()
    assert store.num_bytes == sum(part.num_bytes for part in store.parts)  # type: ignore[attr-defined]


def test_a_directory_is_loaded_to_the_devices_of_a_map(tiny_model_dir: Path) -> None:
    config = read_config(tiny_model_dir)
    num_layers = config.decoder.num_layers
    devices = DeviceMap(
        embeddings=HOST,
        layers=(HOST,) + (ELSEWHERE,) * (num_layers - 1),
        head=ELSEWHERE,
        vision=HOST,
    )
    model = build_model(config, tiny_model_dir, device=devices, dtype=torch.float32)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not (config.decoder.tied_embeddings and "lm_head" in name):
            assert parameter.device == devices.of(name), name
    assert model.decoder.lm_head.weight.device == ELSEWHERE
    assert model.decoder.embed.weight.device == HOST


def test_a_gguf_pair_is_loaded_to_the_devices_of_a_map(demo_pair: Path) -> None:
    source = open_source(demo_pair)
    num_layers = source.config.decoder.num_layers
    devices = DeviceMap(
        embeddings=HOST, layers=(HOST, ELSEWHERE) * (num_layers // 2), head=HOST, vision=ELSEWHERE
    )
    model = source.build(device=devices, dtype=torch.float32)
    assert tuple(model.decoder.layer_devices) == devices.layers
    for name, parameter in model.named_parameters():
        assert parameter.device == devices.of(name), name
    assert model.devices == devices


def test_a_tower_that_is_streamed_is_kept_dense_in_main_memory(demo_pair: Path) -> None:
    source = open_source(demo_pair)
    whole = DeviceMap.whole("cpu", source.config.decoder.num_layers)
    streamed = source.build(device=replace(whole, vision_offload=True), dtype=torch.float32)
    kept = source.build(device="cpu", dtype=torch.float32)
    px = source.config.tile_px
    tiles = torch.randint(0, 256, (3, px, px, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found, expected = (m.encode_tiles(tiles, vision_batch=2) for m in (streamed, kept))
    # The resident matrices multiply by activations of 8 bits.
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999
