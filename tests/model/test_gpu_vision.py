"""The tower in 8 bits as it is on a GPU, here by the same operations on the processor."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ivl
from ivl.config import read_config
from ivl.errors import UnsupportedError
from ivl.kernels.dispatch import pack
from ivl.kernels.linear import Narrow, NarrowLinear, QuantizedLinear
from ivl.model.arithmetic import use_arithmetic, use_narrow
from ivl.model.vision import VisionTower
from ivl.quant.formats import find_format
from tests.random_model import random_model

CONFIG = read_config(Path(ivl.__file__).parent / "assets" / "demo")


def tower() -> VisionTower:
    found = random_model(CONFIG, dtype=torch.float32).vision
    assert isinstance(found, VisionTower)
    return found


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_rounded_numbers(
    kind: Narrow, rows: int, dtype: torch.dtype
) -> None:
    linear = nn.Linear(64, 32, bias=False)
    x = (torch.randn(2, rows, 64) * torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    found = NarrowLinear(linear, kind)(x)
    assert found.dtype == dtype
    exact = linear(x.float())
    error = (found.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < {"int8": 0.03, "fp8": 0.08}[kind]  # each row has a scale of its own
    biased = nn.Linear(64, 32)
    zeros = NarrowLinear(biased, kind)(torch.zeros(rows, 64))
    torch.testing.assert_close(zeros, biased.bias.expand(rows, -1).detach())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_tower_sees_the_same_in_8_bits(kind: Narrow) -> None:
    plain = tower()
    rounded = copy.deepcopy(plain)
    use_narrow(rounded, kind)
    assert sum(isinstance(m, NarrowLinear) for m in rounded.modules()) == 4 * len(plain.layers)
    pixels = torch.randn(2, 3, CONFIG.tile_px, CONFIG.tile_px)
    with torch.inference_mode():
        found, expected = rounded(pixels), plain(pixels)
    similarity = torch.cosine_similarity(found.flatten(1), expected.flatten(1))
    assert similarity.min() > {"int8": 0.999, "fp8": 0.995}[kind]
    assert not torch.equal(found, expected)


def test_towers_that_cannot_are_refused_as_they_are() -> None:
    quantized, streamed = tower(), tower()
    blocks = find_format("Q8_0").quantize(np.zeros((24, 32), np.float32))
    quantized.layers[2].mlp.fc1 = QuantizedLinear(pack(blocks, "Q8_0"))
    with pytest.raises(UnsupportedError, match="quantized"):
        use_narrow(quantized, "int8")
    assert isinstance(quantized.layers[0].attn.qkv, nn.Linear)
    streamed.stream_to(torch.device("cpu"))
    with pytest.raises(UnsupportedError, match="streamed"):
        use_narrow(streamed, "fp8")


def test_a_processor_has_no_products_of_8_bit_floats() -> None:
    model = random_model(CONFIG, dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="GPUs only"):
        use_arithmetic(model, "fp8")
