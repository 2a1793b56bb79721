"""`ivl ask`, `read`, `chat` and `plan` open PDFs as they open pictures, with the bundled model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

import ivl
from ivl.api import Model
from ivl.cli.main import run
from tests.pages.pdf_files import DAMAGED, ENCRYPTED, NO_PAGES, pdf

Output = pytest.CaptureFixture[str]

RECEIPT = ((300, 250), "RECEIPT\nCoffee 3.50\nTea 2.00\nTOTAL 5.50")
INVOICE = ((300, 250), "INVOICE 4711\nDate 2024-03-01\nTotal 99.00")


@pytest.fixture(scope="module")
def demo() -> Model:
    return ivl.load("demo")


@pytest.fixture
def report(tmp_path: Path) -> str:
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf(RECEIPT, INVOICE))
    return str(path)


def test_a_question_is_about_all_pages(report: str, demo: Model, capsys: Output) -> None:
    assert run(["ask", report, "What is the total?", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    pages = ivl.load_pages(report)
    assert record["text"] == demo.ask(pages, "What is the total?").text
    assert record["text"] == demo.ask(report, "What is the total?").text
    assert [(i["file"], i["page"], i["pages"]) for i in record["images"]] == [
        (report, 1, 2),
        (report, 2, 2),
    ]
    assert [(i["width"], i["height"]) for i in record["images"]] == [page.size for page in pages]
    assert record["timings"]["num_tiles"] == 2
    messages = [{"role": "user", "content": "What is the total?"}]
    assert demo.stream(messages, images=report).result().text == record["text"]


def test_one_page_of_several_may_be_asked_about(report: str, demo: Model) -> None:
    for page, image in zip(ivl.open_pages(report), ivl.load_pages(report), strict=True):
        assert demo.ask(page, "What is this?").text == demo.ask(image, "What is this?").text


def test_pages_are_read_one_by_one(report: str, demo: Model, capsys: Output) -> None:
    assert run(["read", report]) == 0
    assert capsys.readouterr().out == (
        f"<!-- page 1 -->\n\n{RECEIPT[1]}\n\n<!-- page 2 -->\n\n{INVOICE[1]}\n\n"
    )
    assert demo.read(report).text == f"{RECEIPT[1]}\n\n{INVOICE[1]}"


def test_a_chat_takes_it_from_its_line_and_on_the_way(
    report: str, demo: Model, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = tmp_path / "receipt.pdf"
    single.write_bytes(pdf(INVOICE))
    expected = demo.ask(str(single), "What is this?").text
    for arguments, lines, noted in (
        ([str(single)], [], ""),
        ([], [f"/image {single}"], "receipt.pdf: 1250 x 1042, goes with"),
        ([report], ["/clear", f"'{single}'"], "receipt.pdf: 1250 x 1042, goes with"),
    ):
        typed = "\n".join([*lines, "What is this?", ""])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert run(["chat", *arguments]) == 0
        output = capsys.readouterr()
        assert output.out == f"{expected}\n"
        assert noted in output.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/image {report}\n"))
    assert run(["chat"]) == 0
    assert "report.pdf: 2 pages, go with the next question" in capsys.readouterr().err


def test_it_may_come_through_a_pipe(
    report: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["ask", "-", "What is it?"], ["read", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(report).read_bytes())))
        assert run([*command, "--max-tokens", "3"]) == 0
        assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ENCRYPTED, "needs a password"),
        (DAMAGED, "is damaged or incomplete"),
        (NO_PAGES, "has no pages"),
        (b"", "is empty"),
        (pdf(RECEIPT, None), "page 2 of 2 is damaged"),
        (pdf(RECEIPT, ((300_000, 100), "1 0 0")), "page 2 of 2 has no usable size"),
        (pdf(*[RECEIPT] * 129), "has 129 pages; at most 128"),
    ],
)
def test_what_cannot_be_asked_about_is_told_before_a_model_is_loaded(
    data: bytes, message: str, never_loads: None, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "bad.pdf"
    path.write_bytes(data)
    assert run(["ask", str(path), "What?"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {path}")
    assert message in output.err
    assert "\nhint: " in output.err


def test_a_page_that_cannot_be_read_is_named_once(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "bad.pdf"
    path.write_bytes(pdf(RECEIPT, None, INVOICE))
    assert run(["read", str(path), "--max-tokens", "4", "--text-layer", "ignore"]) == 2
    output = capsys.readouterr()
    assert "<!-- page 2 -->\n<!-- failed: " in output.out
    assert output.out.count("<!-- truncated -->") == 2
    assert f"error: {path}, page 2 of 3 is damaged and cannot be drawn." in output.err
    assert output.err.count("page 2 of 3") == 1
