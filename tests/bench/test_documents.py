"""bench.documents: every page's reading is held against its truth; work has a least time."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("bench.documents", reason="bench/ is not in the installed package")
import ivl
from bench import documents, documents_beside, random_gguf
from bench.page_limit import PageWork, Processor, tile_ops
from ivl.documents.results import PageResult
from ivl.family import find
from ivl.pages.reader import open_pages
from training.corpus import TRUTH, TruthPage
from training.pdf_writer import PdfPage, PlacedText, write_pdf

LINES = ("SALE", "12.50")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two documents of price tags, and a blank page."""
    tags = [
        PdfPage(size_pt=(160.0, 90.0), texts=(PlacedText(text=line, x=15, y=60, size_pt=40),))
        for line in LINES
    ]
    files = {"a.pdf": [tags[0], PdfPage(size_pt=(160.0, 90.0))], "b.pdf": [tags[1]]}
    truth = [
        TruthPage(path="a.pdf", page=1, pages=2, sort="digital", kind="tag", text=LINES[0]),
        TruthPage(path="a.pdf", page=2, pages=2, sort="blank", kind="blank", text=""),
        TruthPage(path="b.pdf", page=1, pages=1, sort="digital", kind="tag", text=LINES[1]),
    ]
    for name, pages in files.items():
        (tmp_path / name).write_bytes(write_pdf(pages))
    rows = [json.dumps(dataclasses.asdict(page)) for page in truth]
    (tmp_path / TRUTH).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def test_all_pages_are_read_in_every_way_and_compared(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["documents", "--corpus", str(corpus), "--jobs", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", given)
    documents.main()
    shown = capsys.readouterr().out
    assert "3 pages in 2 documents" in shown
    rows = [line.split("|") for line in shown.splitlines() if line.startswith("| ")]
    speed = {row[1].strip(): row for row in rows if len(row) == 10 and row[8].strip() == "3 of 3"}
    assert list(speed) == ["1, none ahead", "1", "as many as it chooses", "2"]
    assert all(float(row[2]) > 0 for row in speed.values())
    assert any(row[1].strip() == "digital" and row[2].strip() == "2" for row in rows)
    assert "1 left blank, 0 letters invented" in shown


def test_an_error_counts_in_its_sort_and_an_invention_on_a_blank_page() -> None:
    def page(sort: str, text: str, number: int) -> TruthPage:
        return TruthPage(path="a", page=number, pages=3, sort=sort, kind="tag", text=text)  # type: ignore[arg-type]

    def result(text: str) -> PageResult:
        return PageResult(path="a", status="ok", text=text)

    truth = [page("clean", "ten letter", 1), page("faded", "abcd", 2), page("blank", "", 3)]
    rows = documents.error_table(truth, [result("ten lettxx"), result("abcd"), result("12345")])
    assert "| that the model is made for | 1 | 10 | 20.0% | 0 without an error |" in rows
    assert "| clean | 1 | 10 | 20.0% | 0 without an error |" in rows
    assert "| faded | 1 | 4 | 0.0% | 1 without an error |" in rows
    assert "| blank | 1 | 0 |  | 0 left blank, 5 letters invented on the others |" in rows


def test_more_work_takes_longer_and_more_pages_at_once_share_the_weights() -> None:
    processor = Processor(ivl.load("demo"))
    work = PageWork(tiles=2, prompt_tokens=300, answer_tokens=100)
    alone, many = (processor.limit(work, at_once=number) for number in (1, 16))
    assert many.write_s <= alone.write_s
    assert (many.encode_s, many.read_s) == (alone.encode_s, alone.read_s)
    more = dataclasses.replace(work, tiles=4)
    assert processor.limit(more, at_once=1).encode_s == pytest.approx(2 * alone.encode_s)
    assert alone.total_s > alone.encode_s > 0


def test_a_tile_of_the_official_tower_takes_some_700_billion_operations() -> None:
    # InternViT-300M: 304 million parameters, 1025 tokens; attention adds a sixth.
    size = find("1b")
    assert size is not None
    assert tile_ops(size.config) == pytest.approx(2 * 1025 * 302e6 * 1.17, rel=0.03)


def test_the_pages_beside_llama_cpp_are_a4_and_take_seven_tiles(tmp_path: Path) -> None:
    path = tmp_path / "pages.pdf"
    path.write_bytes(write_pdf(documents_beside.a4_pages(3, 0)))
    pages = open_pages(path)
    assert len(pages) == 3
    for page in pages:
        width, height = page.size_px()
        assert height / width == pytest.approx(297 / 210, rel=0.01)
    size = find("1b")
    assert size is not None
    assert documents_beside.tiles_of_a4(size.config, 6) == 7


def test_a_file_of_random_weights_says_how_many_tiles_an_image_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, object] = {}

    def write(_: object, path: Path, metadata: dict[str, object], tensors: object) -> None:
        written[path.name] = metadata.get("clip.vision.preproc_max_tiles")

    monkeypatch.setattr(random_gguf.Filler, "write", write)
    for most in (None, 6):
        random_gguf.write_pair("1b", "Q4_K_M", "F16", tmp_path, max_tiles=most)
    assert written["1b-mmproj-F16.gguf"] == 12
    assert written["1b-mmproj-F16-6-tiles.gguf"] == 6
