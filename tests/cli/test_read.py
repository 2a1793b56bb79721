"""`ivl read`: page after page, and what fails leaves the rest alone."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ivl.api import Model
from ivl.cli.main import run

Output = pytest.CaptureFixture[str]
SHORT = ["--max-tokens", "4", "--no-rotate"]  # the tiny model is never sure of what it reads


@pytest.fixture
def scan(tmp_path: Path) -> str:
    """A file of two pages."""
    path = tmp_path / "scan.tif"
    first, second = Image.new("RGB", (100, 200), "red"), Image.new("RGB", (100, 100), "navy")
    for image in (first, second):
        ImageDraw.Draw(image).text((9, 9), "Total 12.00", fill="white")
    first.save(path, save_all=True, append_images=[second])
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


def test_the_name_of_a_file_does_not_command_a_terminal(capsys: Output) -> None:
    assert run(["read", "gone\033]0;title\a.png"]) == 2
    told = capsys.readouterr().err
    assert "gone]0;title.png" in told
    assert "\033" not in told


def test_a_page_that_was_cut_off_is_named(tiny: Path, scan: str, capsys: Output) -> None:
    assert run(["read", scan, *SHORT]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    for number, note in enumerate(notes, 1):
        assert f"{scan}, page {number} of 2: the answer was cut off after 4 tokens" in note
    assert run(["read", scan, *SHORT, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_files_and_pages_have_marks(tiny: Path, picture: str, scan: str, capsys: Output) -> None:
    assert run(["read", picture, scan, *SHORT]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line for line in lines if line.startswith("<!--")] == [
        *(f"<!-- file {picture} -->", "<!-- page 1 -->", "<!-- truncated -->"),
        *(f"<!-- file {scan} -->", "<!-- page 1 -->", "<!-- truncated -->"),
        *("<!-- page 2 -->", "<!-- truncated -->"),
    ]
    assert [len(line) for line in lines if not line.startswith("<!--")] == [4, 4, 4]


def test_a_file_that_fails_does_not_lose_the_others(
    tiny: Path, picture: str, tmp_path: Path, capsys: Output
) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    assert run(["read", "gone.png", picture, str(empty), picture, *SHORT]) == 2
    output = capsys.readouterr()
    assert output.out.count("<!-- page 1 -->") == 2
    assert output.err.count("error: ") == 2
    assert "no file gone.png" in output.err
    assert "is empty" in output.err


def test_json_is_a_list_in_the_order_of_the_files(
    tiny: Path, tiny_model: Model, picture: str, scan: str, capsys: Output
) -> None:
    assert run(["read", scan, "gone.png", picture, *SHORT, "--json"]) == 2
    records = json.loads(capsys.readouterr().out)
    assert [(r["path"], r.get("page")) for r in records] == [
        (scan, 1),
        (scan, 2),
        ("gone.png", None),
        (picture, 1),
    ]
    assert records[3]["text"] == tiny_model.read(picture, max_tokens=4).text
    assert records[3]["grid"] == {"columns": 4, "rows": 3}
    assert records[3]["tiles"] == 13
    assert "gone.png" in records[2]["error"]
    assert (records[2]["status"], records[2]["text"]) == ("failed", "")


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
    assert (record["path"], record["tiles"]) == ("-", 13)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_all(
    tiny: Path, picture: str, interrupt_after: Callable[[int], None], capsys: Output, jobs: str
) -> None:
    interrupt_after(2)
    assert run(["read", picture, picture, *SHORT, "--jobs", jobs]) == 130
    assert "truncated" not in capsys.readouterr().out


def test_ctrl_c_in_a_page_alone_leaves_what_was_written(
    tiny: Path, picture: str, interrupt_after: Callable[[int], None], capsys: Output
) -> None:
    interrupt_after(2)
    assert run(["read", picture, "--max-tokens", "8", "--no-rotate"]) == 130
    output = capsys.readouterr().out
    assert len(output) > 1
    assert output.endswith("\n")
