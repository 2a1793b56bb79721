"""The fused layers beside the plain ones, whose correctness tests/model/test_oracle.py shows."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ivl.kernels import cpu
from ivl.kernels.dispatch import pack
from ivl.kernels.linear import Linear, QuantizedLinear
from ivl.kv import KV_TYPES, KVType
from ivl.model.cache import KVCache, Segment
from ivl.model.cpu_decoder import CpuKVStore, use_fused_layers
from ivl.model.internvl import InternVL
from ivl.quant.formats import find_format
from tests.model.test_cache import CONFIG
from tests.random_model import random_model

pytestmark = pytest.mark.skipif(cpu.loaded() is None, reason="the C++ extension is not built")

WIDE = replace(
    CONFIG,
    decoder=replace(
        CONFIG.decoder, hidden_size=256, intermediate_size=512, num_heads=24, num_kv_heads=8
    ),
)
ISAS = [] if (module := cpu.loaded()) is None else module.usable_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(cpu.ISA_VARIABLE, request.param)
    cpu.extension()
    return request.param


def pair(dtype: torch.dtype = torch.float32) -> tuple[InternVL, InternVL]:
    """A model of plain layers, and the same weights in fused ones."""
    plain = random_model(WIDE, dtype=dtype)
    for name, parameter in plain.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    fused = copy.deepcopy(plain)
    assert use_fused_layers(fused.decoder)
    return plain, fused


def quantize(model: InternVL, formats: list[str]) -> None:
    """Replaces the layers' products by quantized ones, of several formats in turn."""
    places = [
        (parent, name)
        for parent in model.decoder.layers.modules()
        for name, child in parent.named_children()
        if isinstance(child, Linear)
    ]
    for number, (parent, name) in enumerate(places):
        linear = getattr(parent, name)
        format_ = formats[number % len(formats)]
        weight = linear.weight.detach().float().numpy()
        blocks = find_format(format_).quantize(np.ascontiguousarray(weight))
        setattr(parent, name, QuantizedLinear(pack(blocks, format_), linear.bias))


def dequantized(model: InternVL, quantized: InternVL) -> InternVL:
    """`model` with the weights of `quantized` as plain numbers."""
    for name, module in quantized.named_modules():
        if isinstance(module, QuantizedLinear):
            model.get_submodule(name).weight.copy_(module.matrix.dequantize())
    return model


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def run(model: InternVL, kv: KVType | None = None) -> torch.Tensor:
    """Logits of a batch: two prompts, then chunks and steps among each other, over two stores."""
    store = model.new_store(90, kv)
    caches = [KVCache(store, range(first, 90, 3)) for first in range(3)]
    rng = torch.Generator().manual_seed(1)
    out = []
    for sizes in ((40, 13, 3), (1, 77, 1), (1, 1, 1), (30, 2, 1), (9, 9, 200), (1, 1, 1)):
        ids = torch.randint(0, 101, (sum(sizes),), generator=rng)
        segments = [Segment(c, n) for c, n in zip(caches, sizes, strict=True)]
        out.append(model.extend(model.decoder.embed(ids), segments, [1, 2 % (sizes[1] + 1), 1]))
    return torch.cat(out)


@torch.inference_mode()
def test_fused_layers_compute_what_the_layers_compute(isa: str) -> None:
    plain, fused = pair()
    assert isinstance(fused.new_store(1), CpuKVStore)
    assert relative(run(fused), run(plain)) < 1e-5


@torch.inference_mode()
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    module = cpu.loaded()
    assert module is not None
    _, fused = pair()
    quantize(fused, ["Q8_0", "Q4_K"])
    use_fused_layers(fused.decoder)
    before = module.num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            module.set_num_threads(count)
            results.append(run(fused))
    finally:
        module.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_weights_of_16_bits(dtype: torch.dtype) -> None:
    """Nearer to float32 arithmetic on the same weights than torch in 16 bits."""
    plain, fused = pair(dtype)
    exact = run(copy.deepcopy(plain).float())
    assert relative(run(fused), exact) <= 1.2 * relative(run(plain), exact)


@pytest.mark.parametrize(
    "formats", [["Q8_0"], ["Q4_K", "Q6_K"], ["Q5_0", "F16", "Q3_K"], ["BF16", "Q4_0", "F32"]]
)
@torch.inference_mode()
def test_quantized_layers(isa: str, formats: list[str]) -> None:
    """As near to float32 activations on the same weights as plain layers over the same matrices."""
    exact, _ = pair()
    plain = copy.deepcopy(exact)
    quantize(plain, formats)
    expected = run(dequantized(exact, plain))
    by_layers = relative(run(plain), expected)
    assert use_fused_layers(plain.decoder)
    for kv in ("32bit", "16bit"):
        assert relative(run(plain, kv), expected) < 1.2 * by_layers


@pytest.mark.parametrize("kv", KV_TYPES)
@torch.inference_mode()
def test_narrower_caches(isa: str, kv: KVType) -> None:
    plain, fused = pair()
    exact = run(plain)
    assert relative(run(fused, kv), exact) < max(1e-5, 1.2 * relative(run(plain, kv), exact))
    assert fused.new_store(3, kv).num_bytes == plain.new_store(3, kv).num_bytes


@torch.inference_mode()
def test_a_long_context_is_divided_and_put_together(isa: str) -> None:
    """Steps behind 1500 tokens: keys are attended to in parts."""
    plain, fused = pair()
    ids = torch.arange(1500) % 101
    results = []
    for model in (plain, fused):
        cache = model.new_cache(1600)
        model.prefill(model.decoder.embed(ids)[None], cache)
        results.append(torch.stack([model.step(token, cache) for token in (5, 6)]))
    assert relative(results[1], results[0]) < 1e-5


def test_other_heads_stay_with_the_plain_layers() -> None:
    model = random_model(
        replace(CONFIG, decoder=replace(CONFIG.decoder, head_dim=20)), dtype=torch.float32
    )
    assert not use_fused_layers(model.decoder)
    assert not isinstance(model.new_store(1), CpuKVStore)
