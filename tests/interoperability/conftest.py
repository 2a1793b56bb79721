"""Random weights at the family's true widths, and what a model makes of two tiles."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.random_checkpoint import shortened, write_checkpoint
from bench.tokenizer_files import write_tokenizer
from ivl.family import find
from ivl.model.source import open_source

Outputs = dict[str, Tensor]


@pytest.fixture
def true_shape(tmp_path: Path) -> Callable[[str, int], Path]:
    """Writes a size of the family, with so many layers in each part, in the official layout."""

    def write(name: str, num_layers: int) -> Path:
        size = find(name)
        assert size is not None
        directory = tmp_path / name
        directory.mkdir()
        config = shortened(size, num_layers)
        write_checkpoint(config, directory)
        write_tokenizer(config.decoder.architecture, directory)
        return directory

    return write


@pytest.fixture
def outputs() -> Callable[..., Outputs]:
    """Features of two tiles of noise, and the logits of the last tokens of a prompt with them.

    In float32 on a CPU. The model is dropped again: one at a time is in memory.
    """

    @torch.inference_mode()
    def run(model: Path, mmproj: Path | None = None) -> Outputs:
        source = open_source(model, mmproj)
        tokenizer = source.tokenizer()
        network = source.build(dtype=torch.float32)
        noise = np.random.default_rng(0).integers(0, 256, (2, 448, 448, 3), dtype=np.uint8)
        image = [tokenizer.control("<IMG_CONTEXT>")] * (2 * source.config.tokens_per_tile)
        ids = torch.tensor(
            [
                *tokenizer.encode_text("This is an image: "),
                tokenizer.control("<img>"),
                *image,
                tokenizer.control("</img>"),
                *tokenizer.encode_text("\nWhat is the total of the receipt?"),
                tokenizer.control("<|im_end|>"),
            ]
        )
        features = network.encode_tiles(torch.from_numpy(noise), 1)
        logits = network.logits(ids, ids == image[0], features)
        found = {"features": features.clone(), "logits": logits[-10:].clone()}
        del network, logits
        gc.collect()
        return found

    return run


@pytest.fixture
def assert_same() -> Callable[[Outputs, Outputs], None]:
    """Largest differences within 0.001 of the largest value; the same likeliest tokens."""

    def check(found: Outputs, expected: Outputs) -> None:
        for name, wanted in expected.items():
            assert wanted.abs().max() > 0.1
            error = ((found[name] - wanted).abs().max() / wanted.abs().max()).item()
            print(f"{name}: largest relative difference {error:.1e}")
            assert error < 1e-3, name
        assert torch.equal(found["logits"].argmax(-1), expected["logits"].argmax(-1))

    return check
