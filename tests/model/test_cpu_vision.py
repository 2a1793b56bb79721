"""The tower in other arithmetics gives the features of the official code, as nearly as it may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import ivl
from ivl.config import read_config
from ivl.errors import ConfigError, UnsupportedError
from ivl.kernels import cpu
from ivl.kernels.dense import Arithmetic, arithmetics
from ivl.model.arithmetic import CpuVisionTower, use_arithmetic
from ivl.model.build import build_model
from ivl.pages.reader import load_image
from ivl.prompt.tiles import Grid, cut_tiles

GOLDEN = Path(__file__).parents[1] / "golden"
RECEIPT = Path(__file__).parents[2] / "samples" / "receipt.png"
MODULE = cpu.loaded()
ISAS = [] if MODULE is None else MODULE.usable_isas()
LEAST_COSINE = {"float16": 0.99999, "bfloat16": 0.9999, "int8": 0.999}

pytestmark = pytest.mark.skipif(MODULE is None, reason="the C++ extension was not built")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("arithmetic", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["internvit-300m-like_qwen2", "internvit-6b-like_internlm2"])
def test_features_are_those_of_the_official_code(
    name: str, arithmetic: Arithmetic, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IVL_ISA", isa)
    if arithmetic not in arithmetics():
        pytest.skip(f"no {arithmetic} here")
    directory = GOLDEN / name
    expected = load_file(directory / "expected.safetensors")
    model = build_model(read_config(directory), directory, dtype=torch.float32)
    use_arithmetic(model, arithmetic)
    assert isinstance(model.vision, CpuVisionTower)
    with torch.inference_mode():
        features = model.encode_tiles(expected["tiles_u8"][:1])
    cosine = F.cosine_similarity(features, expected["image_features"][:1], dim=-1)
    assert float(cosine.min()) > LEAST_COSINE[arithmetic]


@pytest.mark.parametrize("arithmetic", arithmetics())
def test_the_demo_sees_the_same(arithmetic: Arithmetic) -> None:
    plain = ivl.load("demo", dtype="float32")
    fast = ivl.load("demo", dtype="float32", vision=arithmetic)
    tiles = cut_tiles(load_image(RECEIPT), Grid(1, 1), tile_px=plain.config.tile_px)
    expected, ours = plain.encode_tiles(np.array(tiles)), fast.encode_tiles(np.array(tiles))
    cosine = F.cosine_similarity(ours.float(), expected.float(), dim=-1)
    assert float(cosine.median()) > LEAST_COSINE[arithmetic]
    if arithmetic != "int8":
        expected_text = plain.read(RECEIPT, max_tokens=40).text
        assert fast.read(RECEIPT, max_tokens=40).text == expected_text


def test_a_choice_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="int4"):
        ivl.load("demo", vision="int4")
    monkeypatch.setenv("IVL_ISA", "portable")
    with pytest.raises(UnsupportedError, match="float16"):
        ivl.load("demo", vision="float16")
