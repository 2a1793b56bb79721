"""A prompt, and models of transformers read by ivl."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ivl.cli.main import run
from ivl.config import read_config
from ivl.model.build import build_model
from ivl.model.internvl import InternVL

TOKENS_PER_TILE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt of two tiles, as both sides take it."""

    tiles_u8: Tensor
    pixels: Tensor
    ids: Tensor
    is_image: Tensor


@pytest.fixture(scope="session")
def sample() -> Sample:
    random = np.random.default_rng(5)
    tiles = random.integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = ((tiles / 255 - mean) / std).transpose(0, 3, 1, 2)
    image_id = 99
    text = random.integers(0, image_id, 30)
    ids = np.concatenate([text[:9], np.full(2 * TOKENS_PER_TILE, image_id), text[9:]])
    return Sample(
        tiles_u8=torch.from_numpy(tiles),
        pixels=torch.from_numpy(pixels).float(),
        ids=torch.from_numpy(ids),
        is_image=torch.from_numpy(ids == image_id),
    )


@pytest.fixture
def read_saved(tmp_path: Path) -> Callable[..., InternVL]:
    """Saves a model of transformers as it saves itself, and reads it with ivl."""

    def read(oracle: Any, *, dtype: torch.dtype = torch.float32) -> InternVL:
        oracle.save_pretrained(tmp_path)
        return build_model(read_config(tmp_path), tmp_path, dtype=dtype)

    return read


@pytest.fixture(scope="session")
def demo_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo at Q4_K_M, its tower at Q8_0, in a directory of their own."""
    out = tmp_path_factory.mktemp("pair")
    assert run(["convert", "demo", str(out), "--type", "Q4_K_M", "--vision", "Q8_0", "-q"]) == 0
    return out
