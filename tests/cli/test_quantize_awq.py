"""`ivl quantize DIR OUT --type awq`, from the command line to an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivl.cli.main import run

NOTE = "The ferry leaves at 07:40. " * 8


def test_makes_a_model_that_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "note.txt", tmp_path / "demo-AWQ"
    data.write_text(NOTE)
    args = ["quantize", "demo", str(out), "--type", "awq", "--calibration", str(data), "--json"]
    assert run(args) == 0
    record = json.loads(capsys.readouterr().out)
    [written] = record["files"]
    assert (written["file"], written["sequences"], written["image_tokens"]) == (str(out), 1, 0)
    asked = ["ask", "--model", str(out), "Hello", "--device", "cpu", "--max-tokens", "3"]
    assert run(asked) == 0
    assert run(["check", str(out), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert run(["info", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["stated_name"], facts["licence"]) == ("demo AWQ", "apache-2.0")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo", "out", "AWQ", "--vision", "Q8_0"], "--vision is not for awq"),
        (["demo", "out", "AWQ", "--imatrix", "file"], "--imatrix is not for awq"),
        (["demo", "out.gguf", "Q4_K_M", "--calibration", "data"], "--calibration is for awq"),
        (["demo", "out", "AWQ", "--calibration", "gone"], "gone"),
    ],
)
def test_options_of_the_other_kind_are_refused(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args[1] = str(tmp_path / args[1])
    assert run(["quantize", *args]) == 2
    assert message in capsys.readouterr().err
    assert not Path(args[1]).exists()
