"""References recorded with transformers, in both layouts, and what ivl makes of them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivl.config import read_config
from ivl.errors import CheckpointError, UnsupportedError
from ivl.measure.reference import (
    deviations,
    read_reference,
    record,
    relative_error,
    write_reference,
)
from ivl.model.build import build_model

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
PROMPT = [3, 7, 11, *[99] * 8, 4, 5, 6, 8, 9, 2]


@pytest.fixture
def tiles() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_what_the_official_code_does(name: str) -> None:
    """So the weights were put where they belong, those of InternLM2 into Llama too."""
    directory, expected = GOLDEN / name, load_file(GOLDEN / name / "expected.safetensors")
    config = read_config(directory)
    ours = record(
        directory,
        config,
        tiles_u8=expected["tiles_u8"],
        input_ids=expected["input_ids"].tolist(),
        image_token_id=config.decoder.vocab_size - 1,
    )
    assert ours.keys() == expected.keys()
    for quantity in ("image_features", "last_logits"):
        assert relative_error(ours[quantity], expected[quantity]) < 1e-5
    assert ours["greedy"].tolist() == expected["greedy"].tolist()


@pytest.mark.parametrize(("text", "vision"), [("qwen2", "rms_norm"), ("llama", "layer_norm")])
def test_ivl_agrees_with_what_was_recorded(
    text: str, vision: str, transformers_internvl: Any, tiles: Tensor, tmp_path: Path
) -> None:
    transformers_internvl(text, vision).save_pretrained(tmp_path)
    config, file = read_config(tmp_path), tmp_path / "expected" / "outputs.safetensors"
    file.parent.mkdir()
    tensors = record(tmp_path, config, tiles_u8=tiles, input_ids=PROMPT, image_token_id=99)
    write_reference(file, tensors, 99)
    model = build_model(config, tmp_path, dtype=torch.float32)
    compared = deviations(model, read_reference(file, config), tolerance=1e-5)
    assert all(c.agrees for c in compared), compared


def test_the_image_token_is_the_recorded_one(
    transformers_internvl: Any, tiles: Tensor, tmp_path: Path
) -> None:
    """It need not be the last of the vocabulary."""
    oracle = transformers_internvl()
    oracle.config.image_token_id = 40
    oracle.save_pretrained(tmp_path)
    config, file = read_config(tmp_path), tmp_path / "outputs"
    ids = [40 if token == 99 else token for token in PROMPT]
    write_reference(
        file, record(tmp_path, config, tiles_u8=tiles, input_ids=ids, image_token_id=40), 40
    )
    model = build_model(config, tmp_path, dtype=torch.float32)
    assert all(c.agrees for c in deviations(model, read_reference(file, config)))
    with pytest.raises(CheckpointError, match="40 is the image token, and the tokenizer says 99"):
        record(tmp_path, config, tiles_u8=tiles, input_ids=PROMPT, image_token_id=99)


def copy(name: str, tmp_path: Path, **changes: Any) -> Path:
    directory = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    raw = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def try_to_record(directory: Path) -> dict[str, Tensor]:
    expected = load_file(GOLDEN / NAMES[0] / "expected.safetensors")
    ids = expected["input_ids"].tolist()
    return record(
        directory,
        read_config(directory),
        tiles_u8=expected["tiles_u8"],
        input_ids=ids,
        image_token_id=599,
    )


def test_what_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="pixel shuffle v2 alone"):
        try_to_record(copy(NAMES[0], tmp_path, ps_version="v1"))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    directory = copy(NAMES[0], tmp_path)
    tensors = load_file(directory / "model.safetensors")
    del tensors["mlp1.3.bias"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"linear_2\.bias"):
        try_to_record(directory)


def test_without_transformers_the_hint_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match="not installed") as caught:
        try_to_record(GOLDEN / NAMES[0])
    assert "pip install transformers" in caught.value.hint


def test_code_in_the_checkpoint_is_not_run(
    transformers_internvl: Any, tiles: Tensor, tmp_path: Path
) -> None:
    transformers_internvl().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["auto_map"] = {
        "AutoConfig": "configuration_evil.EvilConfig",
        "AutoModelForImageTextToText": "modeling_evil.EvilModel",
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for name in ("configuration_evil.py", "modeling_evil.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    record(tmp_path, read_config(tmp_path), tiles_u8=tiles, input_ids=PROMPT, image_token_id=99)
    assert not (tmp_path / "ran").exists()
