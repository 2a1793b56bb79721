"""`ivl extract`: from pages to JSON lines and tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

import ivl
from ivl.cli.main import run

Output = pytest.CaptureFixture[str]
PAGES = Path(ivl.__file__).parent / "assets" / "pages"
RECEIPT = str(PAGES / "receipt_2.png")
QUICK = ["--no-check", "--retries", "0"]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


def test_a_line_of_json_for_each_document(capsys: Output) -> None:
    assert run(["extract", "--schema", "receipt", RECEIPT, *QUICK]) == 0
    [line] = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["path"], record["pages"], record["status"]) == (RECEIPT, 1, "ok")
    assert record["values"]["total"] == 35.62
    assert record["fields"]["total"]["status"] == "ok"


def test_a_table_and_what_became_of_it(tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "table.csv"
    command = ["extract", "--schema", "receipt", RECEIPT, "gone.png", "-o", str(out), *QUICK]
    assert run(command) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "2 documents, 2 pages" in output.err
    assert "gone.png" in output.err
    first, second = table(out)
    assert (first["shop"], first["total"], first["missing"]) == ("WILLOW FLOWERS", "35.62", "items")
    assert (second["path"], second["status"]) == ("gone.png", "failed")
    report = json.loads((tmp_path / "table.report.json").read_text())
    assert report["statuses"] == {"ok": 1, "failed": 1}
    assert report["fields"]["items"] == {"missing": 1}


def test_the_same_command_does_nothing_twice(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["extract", "--schema", "receipt", RECEIPT, "-o", str(tmp_path / "t.jsonl"), *QUICK]
    assert run(command) == 0
    written = (tmp_path / "t.jsonl").read_text()
    monkeypatch.setattr("ivl.model.source.build_model", lambda *_, **__: pytest.fail("loaded"))
    assert run(command) == 0
    assert "Done already: 1 of 1 page." in capsys.readouterr().err
    assert (tmp_path / "t.jsonl").read_text() == written


def test_what_there_is_to_do_is_told_without_a_model(
    tmp_path: Path, capsys: Output, never_loads: None
) -> None:
    out = tmp_path / "table.csv"
    command = ["extract", "--schema", "receipt", RECEIPT, RECEIPT, "-o", str(out)]
    assert run([*command, "--dry-run", "--price", "1.20"]) == 0
    told = capsys.readouterr().out
    assert "1 document, 1 page" in told
    assert "GiB of memory" in told
    assert not out.exists()


def test_only_what_failed_is_asked_again(tmp_path: Path, capsys: Output) -> None:
    out, late = tmp_path / "table.csv", tmp_path / "late.png"
    command = ["extract", "--schema", "receipt", str(late), "-o", str(out), *QUICK]
    assert run(command) == 2
    late.write_bytes((PAGES / "receipt_1.png").read_bytes())
    capsys.readouterr()
    assert run([*command, RECEIPT, "--retry-failed"]) == 0
    told = capsys.readouterr().err
    assert ["ok", "1"] in [line.split() for line in told.splitlines()]
    assert ["to", "be", "read", "1"] in [line.split() for line in told.splitlines()]
    assert run([*command, RECEIPT]) == 0
    assert [row["status"] for row in table(out)] == ["ok", "ok"]


def test_a_schema_of_ones_own(tmp_path: Path, capsys: Output) -> None:
    schema = tmp_path / "mine.json"
    properties = {"shop": {"type": ["string", "null"]}}
    schema.write_text(json.dumps({"type": "object", "properties": properties}))
    assert run(["extract", "--schema", str(schema), RECEIPT, *QUICK, "--per", "page"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["page"], record["values"]) == (1, {"shop": "WILLOW FLOWERS"})


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--schema", "reciept"], "reciept cannot be read", "receipt"),
        (["--schema", "receipt", "--force"], "--force", "--out"),
        (["--schema", "receipt", "--retry-failed"], "--retry-failed", "--out"),
        (["--schema", "receipt", "--price", "2"], "--price", "--dry-run"),
        (["--schema", "receipt", "--rows", "items"], "--rows is for a table", "--out"),
        (["--schema", "receipt", "--retries", "9"], "--retries is 9", "0 to 2"),
        (["--schema", "receipt", "-o", "table.xlsx"], "table.xlsx", "*.csv"),
        (["--schema", "receipt", "-o", "t.csv", "--rows", "item"], "no list 'item'", "items"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    never_loads: None, capsys: Output, options: list[str], message: str, hint: str
) -> None:
    assert run(["extract", RECEIPT, *options]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert hint in told


def test_what_cannot_be_enforced_is_told(tmp_path: Path, capsys: Output) -> None:
    schema = tmp_path / "mine.json"
    odd = {"type": "string", "pattern": "(?=a)b"}
    schema.write_text(json.dumps({"type": "object", "properties": {"shop": odd}}))
    assert run(["extract", "--schema", str(schema), RECEIPT, *QUICK]) == 2
    output = capsys.readouterr()
    assert output.out == ""  # it is no fault of the page
    assert "JSON schema" in output.err
