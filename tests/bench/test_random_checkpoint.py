"""Random checkpoints must be what an official repository holds, or measuring them means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench import random_checkpoint
from bench.random_checkpoint import official_config, official_shapes, write_checkpoint
from bench.tokenizer_files import write_tokenizer
from ivl.config import parse_config, read_config
from ivl.family import FAMILY, find
from ivl.model.build import build_model
from ivl.model.source import check_tokenizer

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*/model.safetensors"))


@pytest.mark.parametrize("file", GOLDEN, ids=lambda path: path.parent.name)
def test_names_and_shapes_are_the_official_ones(file: Path) -> None:
    official = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    assert official_shapes(read_config(file.parent)) == official


def test_configurations_are_those_of_the_family() -> None:
    for size in FAMILY:
        assert parse_config(official_config(size.config)) == size.config


def test_what_is_written_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(GOLDEN[1].parent)
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", 300_000)
    stored_bytes = write_checkpoint(config, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = build_model(read_config(tmp_path), tmp_path)
    assert sum(p.nbytes for p in model.parameters()) == stored_bytes
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["1b", "2b"])
def test_tokenizers_fit_their_size(name: str, tmp_path: Path) -> None:
    size = find(name)
    assert size is not None
    write_tokenizer(size.decoder.architecture, tmp_path)
    tokenizer = check_tokenizer(size.config, tmp_path)
    assert abs(tokenizer.vocab_size - size.decoder.vocab_size) <= 1
    text = "What is the total of receipt 7?"
    assert tokenizer.decode(tokenizer.encode_text(text)) == text
    if name == "1b":
        assert tokenizer.control("<IMG_CONTEXT>") == 151667
