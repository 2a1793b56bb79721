"""Results as JSON lines, and as a table that a spreadsheet opens."""

from __future__ import annotations

import csv
import io
import json

import pytest

from ivl.documents.extraction import ExtractResult, document_result
from ivl.documents.extraction import PageFields as Found
from ivl.documents.extraction_tables import json_lines, table_lines
from ivl.documents.field_values import read_fields
from ivl.documents.results import PageResult
from ivl.documents.schemas import load_schema
from ivl.errors import RequestError, UnsupportedError
from ivl.json_values import JsonObject, json_text

SCHEMA = load_schema("receipt")
ITEMS: list[JsonObject] = [
    {"name": "Tea", "quantity": "2", "price": "EUR 5.00"},
    {"name": "=2+2", "quantity": None, "price": "-1.50"},
]


def result(path: str = "a.png", **values: object) -> ExtractResult:
    fields = read_fields(SCHEMA.fields, json_text(values), [], page=1)
    page = PageResult(path=path, number=1, count=1, status="ok")
    return document_result(SCHEMA, path, [Found(page=page, fields=fields)])


def table(*results: ExtractResult, rows: str | None = None) -> list[dict[str, str]]:
    text = "".join(table_lines(SCHEMA, results, rows=rows))
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text[1:], newline="")))


def test_a_row_for_each_document() -> None:
    first, second = table(
        result(shop="Tea, Milk & Co\n", date=None, total="EUR 3.50", items=ITEMS), result("b.png")
    )
    assert (first["path"], first["pages"], first["status"]) == ("a.png", "1", "ok")
    assert (first["shop"], first["total"]) == ("Tea, Milk & Co\n", "3.5")
    assert json.loads(first["items"])[0] == {"name": "Tea", "quantity": 2, "price": 5}
    assert (first["date"], first["missing"]) == ("", "tax; phone")
    assert second["missing"] == "shop; date; total; tax; phone; items"


def test_doubts_name_columns() -> None:
    bad: list[JsonObject] = [*ITEMS, {"name": "Milk", "quantity": "few", "price": "none"}]
    [row] = table(result(shop="Tea", items=bad))
    assert row["doubtful"] == "items"
    rows = table(result(shop="Tea", items=bad), rows="items")
    assert [row["doubtful"] for row in rows] == ["", "", "items.quantity; items.price"]
    assert [row["confidence"] for row in rows] == ["0.78", "0.78", "0.00"]


def test_a_row_for_each_element_of_a_list() -> None:
    rows = table(result(shop="Tea", items=ITEMS), result("b.png", shop="Milk"), rows="items")
    assert [row["path"] for row in rows] == ["a.png", "a.png", "b.png"]
    assert [row["shop"] for row in rows] == ["Tea", "Tea", "Milk"]
    assert [row["items.price"] for row in rows] == ["5", "-1.5", ""]


def test_text_of_a_page_is_no_formula() -> None:
    [row] = table(result(shop='=HYPERLINK("x")', phone="+1 927 817 0647", date="-1+cmd"))
    assert row["shop"] == '\'=HYPERLINK("x")'
    assert row["phone"] == "+1 927 817 0647"
    assert row["date"] == "'-1+cmd"
    [_, row] = table(result(items=ITEMS), rows="items")
    assert (row["items.name"], row["items.price"]) == ("'=2+2", "-1.5")


def test_only_lists_have_rows() -> None:
    with pytest.raises(RequestError, match="no list 'item'") as told:
        table(result(), rows="item")
    assert "items" in told.value.hint


def test_json_has_everything() -> None:
    page = PageResult(
        path="b.png", number=1, count=1, status="failed", error=UnsupportedError("No.", "Do so.")
    )
    failed = document_result(SCHEMA, "b.png", [Found(page=page)])
    first, second = map(json.loads, json_lines([result(shop="Tea", items=ITEMS[:1]), failed]))
    assert first["values"]["shop"] == "Tea"
    assert first["fields"]["items.0.price"] == {
        **{"value": 5, "status": "ok", "confidence": 1.0, "quote": None, "page": 1, "attempts": 1},
    }
    assert (second["status"], second["error"], second["hint"]) == ("failed", "No.", "Do so.")
    assert second["values"] == second["fields"] == {}
