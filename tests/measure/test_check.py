"""Checks as a program calls them: values, problems that are values too, and nothing printed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ivl
from ivl.errors import CheckpointError, RequestError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_what_is_known_grows(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[ivl.Check] = []
    steps: list[tuple[str, int, int]] = []
    check = ivl.check(
        tiny_model_dir,
        device="cpu",
        found=seen.append,
        doing=lambda *step: steps.append(step),
    )
    check.require_sound()
    assert seen[-1] == check
    known = [(one.weights, one.vocab_size, one.device, one.trial) for one in seen]
    assert [sum(value is not None for value in values) for values in known] == [1, 2, 3, 4]
    assert ("reading pages and texts", 0, 0) in steps
    assert capsys.readouterr() == ("", "")


def test_damage_is_a_value(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    tensors["mlp1.1.weight"].fill_(torch.nan)
    save_file(tensors, directory / "model.safetensors")
    check = ivl.check(directory)
    assert check.weights is not None
    assert list(check.weights.not_finite) == ["mlp1.1.weight"]
    assert check.trial is None
    assert isinstance(check.problem, CheckpointError)
    with pytest.raises(CheckpointError, match="NaN"):
        check.require_sound()


def test_another_reference_is_a_problem_too(tmp_path: Path) -> None:
    directory = next(GOLDEN.glob("*/config.json")).parent
    file = directory / "expected.safetensors"
    same = ivl.check(directory, reference=file, device="cpu")
    assert same.problem is None
    assert [one.agrees for one in same.deviations] == [True] * 3
    other = ivl.check(directory, reference=file, tolerance=1e-12, device="cpu")
    assert "differ from" in str(other.problem)


def test_a_model_beside_itself(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("It rained all day.", "utf-8")
    check = ivl.check_against(
        tiny_model_dir, tiny_model_dir, [prose], device="cpu", dtype="float32"
    )
    check.require_sound()
    assert check.fidelity.kl_max == 0
    assert (check.verdict.name, check.original_dtype) == ("indistinguishable", "float32")
    assert capsys.readouterr() == ("", "")


def test_an_importance_matrix_is_described(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prose, out = tmp_path / "prose.txt", tmp_path / "imatrix.gguf"
    prose.write_text("It rained all day.", "utf-8")
    written = ivl.imatrix(tiny_model_dir, [prose], out)
    assert (written.file, written.num_matrices, written.num_tiles) == (out, 14, 0)
    assert out.is_file()
    with pytest.raises(ivl.IvlError, match="exists"):
        ivl.imatrix(tiny_model_dir, [prose], out)
    with pytest.raises(RequestError, match="no data"):
        ivl.imatrix(tiny_model_dir, [tmp_path / "gone"], out, force=True)
    assert capsys.readouterr() == ("", "")
