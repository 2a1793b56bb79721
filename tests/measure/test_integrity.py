"""Files that pass every check of their headers and are damaged all the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivl.config import read_config
from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.measure.integrity import run_once, scan_weights
from ivl.model.build import build_model
from ivl.model.source import open_source

EMBED = "language_model.model.embed_tokens.weight"
NORM = "language_model.model.norm.weight"


@pytest.fixture
def directory(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_sound_model_is_counted(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    report = scan_weights(open_source(directory))
    assert report.num_tensors == len(tensors)
    assert report.num_values == sum(t.numel() for t in tensors.values())
    assert report.stored_bytes == sum(t.nbytes for t in tensors.values())
    assert (report.dtypes, report.not_finite, report.only_zeros) == (("float32",), {}, ())
    report.require_sound()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_value_that_is_no_number_is_counted(
    dtype: torch.dtype, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across the pieces in which a large tensor is looked at."""
    monkeypatch.setattr("ivl.measure.integrity.CHUNK_VALUES", 50)

    def damage(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)
        tensors[EMBED][0, 0] = tensors[EMBED][-1, -1] = float("nan")
        tensors[NORM][5] = -float("inf")

    rewrite(directory, damage)
    report = scan_weights(open_source(directory))
    assert report.not_finite == {EMBED: 2, NORM: 1}
    with pytest.raises(CheckpointError, match=r"2 of \d+ tensors hold NaN .* 2 times") as caught:
        report.require_sound()
    assert "download them again" in caught.value.hint


def test_zeros_where_a_download_never_arrived_are_found(directory: Path) -> None:
    """Biases may well be zero; matrices of a trained model are not."""

    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["mlp1.1.weight"].zero_()
        tensors["mlp1.1.bias"].zero_()

    rewrite(directory, damage)
    report = scan_weights(open_source(directory))
    assert report.only_zeros == ("mlp1.1.weight",)
    with pytest.raises(CheckpointError, match=r"nothing but zeros: mlp1\.1\.weight"):
        report.require_sound()


def test_a_scan_reads_every_tensor_once(directory: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = scan_weights(open_source(directory), lambda *step: steps.append(step))
    assert steps == [(n + 1, report.num_tensors) for n in range(report.num_tensors)]


def test_the_tokenizer_must_be_there_and_fit(directory: Path) -> None:
    config = read_config(directory)
    assert open_source(directory).tokenizer().vocab_size <= config.decoder.vocab_size
    raw = json.loads((directory / "config.json").read_text())
    raw["llm_config"]["vocab_size"] = 90
    (directory / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="and the model 90"):
        open_source(directory).tokenizer()
    for file in directory.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        open_source(directory).tokenizer()


def test_the_tokenizer_of_the_language_model_alone_is_refused(directory: Path) -> None:
    for file in directory.glob("*token*.json"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("<IMG_CONTEXT>", "<other>"), encoding="utf-8")
    with pytest.raises(UnsupportedError, match="no <IMG_CONTEXT>"):
        open_source(directory).tokenizer()


@pytest.mark.parametrize(
    ("dtype", "hint"), [(torch.float16, "bfloat16"), (torch.float32, "trained model")]
)
@pytest.mark.parametrize(
    ("name", "what"), [("mlp1.3.weight", "image features"), ("lm_head.weight", "logits")]
)
def test_weights_too_large_to_compute_with_are_found(
    name: str, what: str, dtype: torch.dtype, hint: str, directory: Path
) -> None:
    name = name if name.startswith("mlp1") else f"language_model.{name}"
    largest = torch.finfo(dtype).max / 2
    rewrite(directory, lambda tensors: tensors.update({name: tensors[name].sign() * largest}))
    config = read_config(directory)
    scan_weights(open_source(directory)).require_sound()
    tokenizer = open_source(directory).tokenizer()
    with pytest.raises(CheckpointError, match=f"The {what} of a test image") as caught:
        run_once(build_model(config, directory, dtype=dtype), tokenizer)
    assert hint in caught.value.hint


def test_a_sound_model_runs(directory: Path) -> None:
    config = read_config(directory)
    network = build_model(config, directory)
    asked: list[int] = []
    network.decoder.norm.register_forward_hook(lambda _, given, out: asked.append(out.shape[-2]))
    run_once(network, open_source(directory).tokenizer())
    # The whole model ran, to its last norm, and over the tokens of a tile.
    assert sum(asked) > config.tokens_per_tile
