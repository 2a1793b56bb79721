"""`ivl convert`, `ivl quantize` and `ivl imatrix`: files that come out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.imatrix import read_imatrix
from ivl.cli.main import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def pair(tiny_model_dir: Path, tmp_path: Path, capsys: Captured) -> tuple[Path, Path]:
    assert run(["convert", str(tiny_model_dir), str(tmp_path), "--type", "F32"]) == 0
    capsys.readouterr()
    return tmp_path / "tiny-F32.gguf", tmp_path / "mmproj-tiny-F32.gguf"


def fails(arguments: list[Any], capsys: Captured) -> str:
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "hint: " in error
    return error


def test_the_files_are_named_and_described(
    tiny_model_dir: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "new" / "folder"
    arguments = ["convert", tiny_model_dir, out, "--type", "q4_k_m", "--vision", "q8_0", "--json"]
    assert run([str(argument) for argument in arguments]) == 0
    text, mmproj = json.loads(capsys.readouterr().out)["files"]
    assert Path(text["file"]) == out / "tiny-Q4_K_M.gguf"
    assert Path(mmproj["file"]) == out / "mmproj-tiny-Q8_0.gguf"
    assert text["bytes"] == Path(text["file"]).stat().st_size
    # 64 and 96 columns: no K-quant divides them, so llama.cpp's fallbacks.
    assert set(text["tensors"]) == {"F32", "Q5_0", "Q8_0"}
    assert GGUFFile(out / "tiny-Q4_K_M.gguf").metadata["general.file_type"] == 15


def test_a_file_is_quantized_as_the_model_is(
    pair: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """From the F32 file the same tensors come as straight from the checkpoint."""
    direct, by_file = tmp_path / "direct.gguf", tmp_path / "by-file.gguf"
    assert run(["quantize", str(tiny_model_dir), str(direct), "Q4_0"]) == 0
    assert run(["quantize", str(pair[0]), str(by_file), "--type", "Q4_0"]) == 0
    first, second = GGUFFile(direct), GGUFFile(by_file)
    assert {k: first.encoded(k) for k in first.metadata} == {
        k: second.encoded(k) for k in second.metadata
    }
    for name, entry in first.tensors.items():
        assert second.tensors[name].format is entry.format
        assert np.array_equal(first.read(name), second.read(name))


def test_a_projector_is_quantized_by_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "mmproj.gguf"
    assert run(["quantize", str(pair[1]), str(out), "Q5_0"]) == 0
    kinds = {name: entry.format.name for name, entry in GGUFFile(out).tensors.items()}
    assert kinds["v.blk.0.ffn_down.weight"] == "Q5_0"
    # 48 columns are no multiple of 32.
    assert kinds["v.blk.0.ffn_up.weight"] == "F16"
    assert kinds["v.patch_embd.weight"] == kinds["v.class_embd"] == "F32"


def test_what_is_quantized_is_quantized_again_only_when_allowed(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Captured
) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    assert run(["quantize", str(pair[0]), str(once), "Q8_0"]) == 0
    assert "--allow-requantize" in fails(["quantize", once, twice, "Q4_0"], capsys)
    assert run(["quantize", str(once), str(twice), "Q4_0", "--allow-requantize"]) == 0
    assert GGUFFile(twice).tensors["blk.0.attn_q.weight"].format.name == "Q4_0"


def test_importance_is_the_mean_square_of_inputs(
    tiny_model_dir: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The first layer's q, k and v meet the normed embeddings, which are computed here anew."""
    from ivl.api import load

    text, matrix = tmp_path / "text.txt", tmp_path / "imatrix.gguf"
    text.write_text("What is the total?", encoding="utf-8")
    arguments = ["imatrix", str(tiny_model_dir), str(text), "-o", str(matrix)]
    assert run([*arguments, "--dtype", "float32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tiles"] == 0
    model = load(tiny_model_dir, dtype="float32").engine
    ids = torch.tensor(model.tokenizer.encode_text("What is the total?"))
    with torch.inference_mode():
        x = model.model.decoder.layers[0].attn_norm(model.model.decoder.embed(ids))  # type: ignore
    found = read_imatrix(matrix)
    for which in "qkv":
        means = found.means[f"blk.0.attn_{which}.weight"]
        assert np.allclose(means, x.square().mean(0).numpy(), rtol=1e-4)
    assert len(found.means) == 2 * 7
    out = tmp_path / "out.gguf"
    assert run(["quantize", str(tiny_model_dir), str(out), "Q4_0", "--imatrix", str(matrix)]) == 0
    assert GGUFFile(out).metadata["quantize.imatrix.entries_count"] == 14


def test_images_count_the_tower_too(tiny_model_dir: Path, picture: str, tmp_path: Path) -> None:
    matrix, text = tmp_path / "imatrix.gguf", Path(picture).with_suffix(".txt")
    text.write_text("It says 42.", encoding="utf-8")
    assert run(["imatrix", str(tiny_model_dir), picture, "-o", str(matrix)]) == 0
    found = read_imatrix(matrix)
    assert len(found.means["v.blk.1.attn_k.weight"]) == 48
    assert found.counts["v.blk.1.attn_k.weight"] % 17 == 0  # 16 patches and a class token
    assert "mm.model.mlp.1.weight" in found.means


def test_mistakes_are_told(
    pair: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path, capsys: Captured
) -> None:
    text, mmproj = pair
    out = tmp_path / "out.gguf"
    assert "Q4_K_M" in fails(["convert", tiny_model_dir, tmp_path, "--type", "Q4_KM"], capsys)
    assert "Q8_0" in fails(["convert", tiny_model_dir, tmp_path, "--vision", "Q8"], capsys)
    assert "--force" in fails(["convert", tiny_model_dir, tmp_path, "--type", "F32"], capsys)
    assert "no model" in fails(["convert", tmp_path, tmp_path / "o"], capsys)
    assert "ivl quantize" in fails(["convert", text, tmp_path], capsys)
    assert "type is missing" in fails(["quantize", text, out], capsys)
    assert "Two types" in fails(["quantize", text, out, "Q8_0", "--type", "Q4_0"], capsys)
    assert "input itself" in fails(["quantize", text, text, "Q8_0", "--force"], capsys)
    assert "K-quants" in fails(["quantize", mmproj, out, "Q4_K_M"], capsys)
    assert "end in .gguf" in fails(["quantize", tiny_model_dir, tmp_path / "o", "Q8_0"], capsys)
    assert "importance" in fails(["quantize", text, out, "Q8_0", "--imatrix", text], capsys)
    assert "--imatrix" in fails(["quantize", text, out, "Q8_0", "--calibration", out], capsys)
    read_only = tmp_path / "file"
    read_only.write_text("")
    assert "OUT is a directory" in fails(["convert", tiny_model_dir, read_only], capsys)
    assert not out.exists()


def test_one_command_makes_awq_too(tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "text.txt"
    page.write_text("The total is 42.", encoding="utf-8")
    arguments = ["quantize", "demo", str(tmp_path / "awq"), "--type", "awq"]
    assert run([*arguments, "--calibration", str(page), "-q"]) == 0
    raw = json.loads((tmp_path / "awq" / "config.json").read_text("utf-8"))
    assert "awq" in json.dumps(raw)
    assert "exists" in fails([*arguments, "--calibration", page], capsys)
