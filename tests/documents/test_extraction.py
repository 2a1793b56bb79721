"""What is asked about a page, and what becomes of the answers."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field, field_validator

import ivl
from ivl.documents import extraction as extraction_module
from ivl.documents.extraction import (
    ExtractSettings,
    PageFields,
    document_result,
    extraction_record,
    page_result,
    talk_about,
)
from ivl.documents.extraction_job import extract, extract_status
from ivl.documents.field_values import AnsweredToken
from ivl.documents.looking import failed
from ivl.documents.page_talks import PageAnswer, PageQuestion, Talk
from ivl.documents.prompts import READ_QUESTION
from ivl.documents.results import PageResult
from ivl.documents.schemas import load_schema
from ivl.errors import RequestError

PICTURE = Image.new("RGB", (64, 48), "white")
PAGES = Path(ivl.__file__).parent / "assets" / "pages"
RECEIPT = PAGES / "receipt_2.png"
"""WILLOW FLOWERS, 35.62 EUR, without a tax; the bundled model reads it well."""


class Receipt(BaseModel):
    shop: str | None
    total: str | None = Field(json_schema_extra={"title": "total"})

    @field_validator("total")
    @classmethod
    def has_a_currency(cls, total: str | None) -> str | None:
        if total is not None and "EUR" not in total:
            raise ValueError("without a currency")
        return total


def said(text: str, *, sure: float = 0.9, is_whole: bool = True) -> PageAnswer:
    """An answer of which one token wrote everything, with this probability."""
    token = AnsweredToken(math.log(sure), 0, len(text))
    return PageAnswer(text=text, tokens=(token,), is_whole=is_whole)


def converse(
    settings: ExtractSettings, answers: list[PageAnswer], layer: str | None = None
) -> tuple[PageFields, list[PageQuestion]]:
    """What comes of a page when the model answers so, and what it was asked."""
    page = PageResult(path="a.png", number=1, count=1, status="ok")

    def read() -> Talk[PageResult]:
        [read] = yield [PageQuestion(image=PICTURE, question=READ_QUESTION)]
        return replace(page, text=read.text)

    if layer is not None:
        page = replace(page, status="text-layer", text=layer)
    reading = read() if layer is None and settings.check else None
    talk = talk_about(page, lambda turned: PICTURE, settings, lambda: "short", reading)
    asked, left = next(talk), iter(answers)
    while True:
        try:
            asked += talk.send([next(left)])
        except StopIteration as ended:
            assert next(left, None) is None
            return ended.value, asked


SETTINGS = ExtractSettings(schema=load_schema(Receipt))
READ = said("Willow Flowers\nTotal EUR 3.50")
GOOD = said('{"shop": "Willow Flowers", "total": "EUR 3.50"}')


def test_a_page_is_read_and_asked_once_where_all_is_well() -> None:
    found, asked = converse(SETTINGS, [READ, GOOD])
    assert [one.schema is None for one in asked] == [True, False]
    assert {name: one.quote for name, one in found.fields.items()} == {
        **{"shop": "Willow Flowers", "total": "EUR 3.50"},
    }
    result = page_result(SETTINGS.schema, found)
    assert isinstance(result.data, Receipt)
    assert result.data.total == "EUR 3.50"


def test_a_layer_is_not_read_and_without_a_check_nothing_is() -> None:
    _, asked = converse(SETTINGS, [GOOD], layer=READ.text)
    assert len(asked) == 1
    unchecked = ExtractSettings(schema=SETTINGS.schema, check=False)
    found, asked = converse(unchecked, [GOOD])
    assert len(asked) == 1
    assert found.fields["shop"].quote is None
    assert found.fields["shop"].confidence == pytest.approx(0.9)


def test_a_value_that_is_not_on_the_page_is_asked_for_alone() -> None:
    wrong = said('{"shop": "Wallow Flowers", "total": "EUR 3.50"}')
    found, asked = converse(SETTINGS, [READ, wrong, said('{"shop": "Willow Flowers"}')])
    assert "shop" in asked[-1].question
    assert "total" not in asked[-1].question
    shop = found.fields["shop"]
    assert (shop.value, shop.status, shop.attempts) == ("Willow Flowers", "ok", 2)
    assert found.fields["total"].attempts == 1


def test_it_is_asked_for_twice_at_most_and_the_best_kept() -> None:
    wrong = said('{"shop": "Wallow", "total": "EUR 3.50"}')
    worse = [said('{"shop": "Wellow"}', sure=0.2), said('{"shop": null}', sure=0.1)]
    found, asked = converse(SETTINGS, [READ, wrong, *worse])
    assert asked[-1].question != asked[-2].question
    shop = found.fields["shop"]
    assert (shop.value, shop.status, shop.attempts) == ("Wallow", "doubtful", 3)
    never = ExtractSettings(schema=SETTINGS.schema, retries=0)
    found, _ = converse(never, [READ, wrong])
    assert found.fields["shop"].attempts == 1


def test_what_the_class_does_not_take_is_asked_for_again() -> None:
    misfit = said('{"shop": "Willow Flowers", "total": "3.50"}')
    found, _ = converse(SETTINGS, [READ, misfit, said('{"total": "EUR 3.50"}')])
    assert found.fields["total"].value == "EUR 3.50"
    found, _ = converse(SETTINGS, [READ, misfit, said('{"total": "3.50"}'), misfit])
    result = page_result(SETTINGS.schema, found)
    assert result.data is None
    assert result.fields["total"].status == "invalid"
    assert result.doubtful == ["total"]
    assert "without a currency" in result.notes[0]


def test_an_answer_that_was_cut_off_is_completed_field_by_field() -> None:
    cut = said('{"shop": "Willow Flowers", "tot', is_whole=False)
    found, _ = converse(
        ExtractSettings(schema=load_schema("letter"), check=False),
        [
            said('{"sender": "A", "recipient": "B", "date": "C", "str', is_whole=False),
            said('{"street": "D"}'),
            said('{"town": null}'),
        ],
    )
    assert found.page.status == "truncated"
    assert [one.status for one in found.fields.values()] == ["ok"] * 4 + ["null", "missing"]
    found, _ = converse(SETTINGS, [READ, cut, said("{"), said("{")])
    assert found.fields["total"].status == "missing"


def test_a_journal_has_all_of_a_page() -> None:
    found, _ = converse(SETTINGS, [READ, GOOD])
    record = json.loads(json.dumps(found.to_dict()))
    again = PageFields.from_dict(record)
    assert page_result(SETTINGS.schema, again) == page_result(SETTINGS.schema, found)


def test_a_document_with_a_failed_page_has_the_fields_of_the_others() -> None:
    found, _ = converse(SETTINGS, [READ, GOOD])
    error = RequestError("The page is damaged.")
    bad = PageFields(page=PageResult(path="a.pdf", number=2, status="failed", error=error))
    result = document_result(SETTINGS.schema, "a.pdf", [found, bad])
    assert (result.status, result.values["shop"]) == ("failed", "Willow Flowers")
    assert result.error is error


@pytest.mark.parametrize(
    "changed",
    [{"text_layer": "ignore"}, {"rotate": False}, {"skip_blank": False}, {"retry": False}],
)
def test_what_is_known_of_a_page_was_read_with_the_same_settings(changed: dict[str, Any]) -> None:
    other = replace(SETTINGS, reading=replace(SETTINGS.reading, **changed))
    assert extraction_record(other, {}) != extraction_record(SETTINGS, {})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"per": "file"}, "per"),
        ({"min_confidence": 2.0}, "min_confidence"),
        ({"retries": 5}, "retries"),
        ({"rows": "items"}, "rows"),
        ({"out": "table.xlsx"}, "table"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_what_means_nothing_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ivl.IvlError, match=named):
        list(extract(RECEIPT, schema="receipt", model=lambda: pytest.fail("loaded"), **options))


@pytest.fixture(scope="module")
def demo() -> ivl.Model:
    return ivl.load("demo", device="cpu", dtype="float32")


def test_the_bundled_model_fills_the_ready_schema(demo: ivl.Model) -> None:
    [result] = extract(RECEIPT, schema="receipt", model=demo)
    assert (result.status, result.count) == ("ok", 1)
    assert (result.values["shop"], result.values["total"]) == ("WILLOW FLOWERS", 35.62)
    assert result.fields["total"].quote == "35.62 EUR"
    assert result.values["tax"] is None
    assert result.fields["items"].status == "missing"
    assert 0.6 <= (result.fields["shop"].confidence or 0) <= 1


def test_results_come_in_order_for_pages_and_documents(demo: ivl.Model, tmp_path: Path) -> None:
    scan = tmp_path / "scan.tif"
    first, second = (Image.open(PAGES / f"receipt_{n}.png").convert("RGB") for n in (1, 2))
    first.save(scan, save_all=True, append_images=[second])
    options: dict[str, Any] = {"schema": "receipt", "model": demo, "retries": 0}
    rows = list(extract([scan, "gone.png", RECEIPT], per="page", **options))
    assert [(row.page, row.status) for row in rows] == [
        *((1, "ok"), (2, "ok"), (None, "failed"), (1, "ok")),
    ]
    assert rows[1].values == rows[3].values
    assert rows[2].error is not None
    [last] = extract(scan, per="page", check=False, pages="-1", **options)
    assert last.page == 2
    whole, _, _ = extract([scan, "gone.png", RECEIPT], check=False, **options)
    assert (whole.page, whole.count) == (None, 2)
    assert any("differ in shop" in note for note in whole.notes)


def test_a_table_is_written_whole_and_a_run_goes_on(
    demo: ivl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "table.csv"
    options: dict[str, Any] = {"schema": "receipt", "check": False, "retries": 0, "out": out}
    results = extract([PAGES / "receipt_1.png", RECEIPT], model=demo, jobs=1, **options)
    next(results)
    results.close()
    assert not out.exists()
    begun = [PAGES / "receipt_1.png"]
    list(extract(begun, model=lambda: pytest.fail("loaded"), model_facts=demo.facts, **options))
    [row] = csv.DictReader(io.StringIO(out.read_text("utf-8-sig")))
    assert row["path"] == str(begun[0])
    assert extract_status(out).statuses == {"ok": 1}
    report = json.loads((tmp_path / "table.report.json").read_text())
    assert report["fields"]["shop"] == {"ok": 1} or report["fields"]["shop"] == {"doubtful": 1}
    list(extract([*begun, RECEIPT], model=demo, **options))
    assert len(out.read_text("utf-8-sig").splitlines()) == 3
    other = extract(begun, model=demo, **{**options, "schema": "letter"})
    next(other)
    other.close()
    assert not out.exists()  # a table of another schema does not stand for this one


def test_only_failed_pages_are_tried_again_and_a_dry_run_counts(
    demo: ivl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tables" / "table.csv"
    out.parent.mkdir()
    options: dict[str, Any] = {"schema": "receipt", "check": False, "retries": 0, "out": out}
    told: list[tuple[int, int]] = []

    def note(progress: ivl.ReadProgress) -> None:
        told.append((progress.num_before, progress.num_pages))

    nobody: dict[str, Any] = {"model": lambda: pytest.fail("loaded"), "model_facts": demo.facts}
    assert not list(extract(RECEIPT, dry_run=True, found=note, **nobody, **options))
    assert told.pop() == (0, 1)
    assert not list(out.parent.iterdir())

    with monkeypatch.context() as patch:
        torn = RequestError("It is torn.")
        patch.setattr(
            extraction_module,
            "look_at",
            lambda page, _: failed(PageResult(path=page.name, status="ok"), page, torn),
        )
        [result] = extract(RECEIPT, model=demo, **options)
    assert (result.status, extract_status(out).has_failed) == ("failed", True)
    both = [PAGES / "receipt_1.png", RECEIPT]
    assert not list(extract(both, dry_run=True, found=note, **nobody, **options))
    assert told == [(0, 2)]
    before = out.read_text()
    [result] = extract(both, model=demo, retry_failed=True, **options)
    assert (result.path, result.status) == (str(RECEIPT), "ok")
    assert out.read_text() == before  # a page is missing yet
    assert extract_status(out).num_left == 1
    [result] = extract(RECEIPT, retry_failed=True, **nobody, **options)
    assert "35.62" in out.read_text()


def test_a_picture_that_is_no_file_is_known_by_what_it_shows(
    demo: ivl.Model, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"schema": "receipt", "check": False, "retries": 0}
    out = tmp_path / "table.jsonl"
    image = Image.open(RECEIPT).convert("RGB")
    [first] = extract(image, model=demo, out=out, **options)
    again = extract(
        image, model=lambda: pytest.fail("loaded"), model_facts=demo.facts, out=out, **options
    )
    assert list(again) == [first]


def test_a_file_that_no_run_has_written_is_left_alone(demo: ivl.Model, tmp_path: Path) -> None:
    out = tmp_path / "mine.csv"
    out.write_text("mine")
    with pytest.raises(RequestError, match="no run of ivl") as told:
        list(extract(RECEIPT, schema="receipt", model=demo, out=out))
    assert "`force`" in told.value.hint
    assert out.read_text() == "mine"
    scan = tmp_path / "scan.jsonl"
    scan.write_bytes(RECEIPT.read_bytes())
    with pytest.raises(RequestError, match="one of the documents"):
        list(extract(scan, schema="receipt", model=demo, out=scan))


def test_a_model_without_sense_still_keeps_the_form(tiny_model_dir: Path) -> None:
    """Random weights: whatever comes, there is a result with all fields and a status."""
    model = ivl.load(tiny_model_dir, context=512)
    picture = Image.new("L", (64, 48), "white")
    ImageDraw.Draw(picture).text((9, 9), "Total 12.00", fill=0)
    [result] = extract(picture, schema="letter", model=model, max_tokens=40, retries=1)
    assert result.status in ("ok", "truncated", "repeated")
    assert list(result.fields) == [field.name for field in load_schema("letter").fields]
