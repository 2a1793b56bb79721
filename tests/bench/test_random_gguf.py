"""Pairs of random weights are whole: they load, and say what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.random_gguf import Filler, num_weights, projector_tensors
from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_config import mmproj_metadata, read_projector
from ivl.family import find


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_projector_fits_its_decoder(tmp_path: Path, kind: str) -> None:
    size = find("1b")
    assert size is not None
    tensors = projector_tensors(size.config, kind)
    few = [t for t in tensors if not t.name.startswith("v.blk.") or t.name.startswith("v.blk.0.")]
    path = tmp_path / "mmproj.gguf"
    metadata = mmproj_metadata(
        size.config, name="random", num_weights=num_weights(few), file_type=1
    )
    Filler().write(path, metadata, few)
    file = GGUFFile(path)
    assert read_projector(file, size.config).vision == size.vision
    entry = file.tensors["v.blk.0.ffn_up.weight"]
    weights = entry.format.dequantize(file.read("v.blk.0.ffn_up.weight"))
    assert entry.format.name == kind
    assert np.isclose(weights.std(), entry.shape[1] ** -0.5, rtol=0.1)
