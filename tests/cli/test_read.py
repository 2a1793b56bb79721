"""`ivl read`: page after page, and what fails leaves the rest alone."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ivl.api import Model
from ivl.cli.main import run

Output = pytest.CaptureFixture[str]
SHORT = ["--max-tokens", "4"]


@pytest.fixture
def scan(tmp_path: Path) -> str:
    """A file of two pages."""
    path = tmp_path / "scan.tif"
    second = Image.new("RGB", (100, 100), "navy")
    Image.new("RGB", (100, 200), "red").save(path, save_all=True, append_images=[second])
    return str(path)


def test_one_page_is_its_text_alone(
    tiny: Path, tiny_model: Model, picture: str, capsys: Output
) -> None:
    assert run(["read", picture, *SHORT]) == 0
    output = capsys.readouterr()
    assert output.out == f"{tiny_model.read(picture, max_tokens=4).text}\n"
    assert (
        output.err == "note: the answer was cut off after 4 tokens (--max-tokens sets the limit)\n"
    )


def test_a_page_that_was_cut_off_is_named(tiny: Path, scan: str, capsys: Output) -> None:
    assert run(["read", scan, *SHORT]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    for number, note in enumerate(notes, 1):
        assert f"{scan}, page {number} of 2: the answer was cut off after 4 tokens" in note
    assert run(["read", scan, *SHORT, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_several_pages_have_titles_like_those_of_head(
    tiny: Path, picture: str, scan: str, capsys: Output
) -> None:
    assert run(["read", picture, scan, *SHORT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0::3] == [
        f"==> {picture} <==",
        f"==> {scan}, page 1 of 2 <==",
        f"==> {scan}, page 2 of 2 <==",
    ]
    assert lines[2::3] == ["", ""]
    assert all(len(text) == 4 for text in lines[1::3])


def test_a_file_that_fails_does_not_lose_the_others(
    tiny: Path, picture: str, tmp_path: Path, capsys: Output
) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    assert run(["read", "gone.png", picture, str(empty), picture, *SHORT]) == 2
    output = capsys.readouterr()
    assert output.out.count(f"==> {picture} <==") == 2
    assert output.err.count("error: ") == 2
    assert "no file gone.png" in output.err
    assert "is empty" in output.err


def test_json_is_a_list_in_the_order_of_the_files(
    tiny: Path, tiny_model: Model, picture: str, scan: str, capsys: Output
) -> None:
    assert run(["read", scan, "gone.png", picture, *SHORT, "--json"]) == 2
    records = json.loads(capsys.readouterr().out)
    assert [(r["file"], r.get("page")) for r in records] == [
        (scan, 1),
        (scan, 2),
        ("gone.png", None),
        (picture, 1),
    ]
    assert records[3]["text"] == tiny_model.read(picture, max_tokens=4).text
    assert records[3]["grid"] == {"columns": 4, "rows": 3}
    assert records[3]["tiles"] == 13
    assert "gone.png" in records[2]["error"]
    assert "text" not in records[2]


def test_without_a_page_no_model_is_loaded(never_loads: None, capsys: Output) -> None:
    assert run(["read", "gone.png", "lost.png"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("error: ") == 2


def test_a_page_may_come_through_a_pipe(
    tiny: Path, picture: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(picture).read_bytes())))
    assert run(["read", "-", *SHORT, "--json"]) == 0
    [record] = json.loads(capsys.readouterr().out)
    assert (record["file"], record["tiles"]) == ("-", 13)


def test_ctrl_c_ends_all(
    tiny: Path, picture: str, interrupt_after: Callable[[int], None], capsys: Output
) -> None:
    interrupt_after(2)
    assert run(["read", picture, picture, *SHORT]) == 130
    assert capsys.readouterr().out.count("==>") == 1
