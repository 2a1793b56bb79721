"""The fields of a document from those of its pages."""

from __future__ import annotations

from typing import Any

from ivl.documents.field_values import Fields, FieldValue, read_fields
from ivl.documents.merging import merge_pages, values_of
from ivl.documents.schemas import schema_of
from ivl.json_values import json_text

TEXT = {"type": ["string", "null"]}
SCHEMA = schema_of(
    {
        "type": "object",
        "properties": {
            "shop": TEXT,
            "buyer": {
                "type": ["object", "null"],
                "properties": {"name": TEXT, "town": TEXT},
            },
            "items": {
                "type": "array",
                "items": {"type": "object", "properties": {"name": TEXT, "price": TEXT}},
            },
            "tags": {"type": "array", "items": TEXT},
        },
    }
)


def page(number: int, **values: Any) -> Fields:
    return read_fields(SCHEMA.fields, json_text(values), [], page=number)


def sure(fields: Fields, name: str, confidence: float) -> Fields:
    one = fields[name]
    changed = FieldValue(value=one.value, status="ok", confidence=confidence, page=one.page)
    return {**fields, name: changed}


def test_the_surest_value_is_kept_and_a_difference_told() -> None:
    pages = [sure(page(1, shop="Tee"), "shop", 0.7), sure(page(2, shop="Tea"), "shop", 0.9)]
    fields, notes = merge_pages(SCHEMA.fields, pages)
    assert (fields["shop"].value, fields["shop"].page) == ("Tea", 2)
    assert notes == ["The pages differ in shop: 'Tee' (page 1), 'Tea' (page 2)."]


def test_a_value_comes_before_null_and_null_before_nothing() -> None:
    fields, notes = merge_pages(SCHEMA.fields, [page(1, shop=None), page(2, shop="Tea"), page(3)])
    assert fields["shop"].value == "Tea"
    fields, _ = merge_pages(SCHEMA.fields, [page(1), page(2, shop=None)])
    assert fields["shop"].status == "null"
    fields, _ = merge_pages(SCHEMA.fields, [page(1), page(2)])
    assert fields["shop"].status == "missing"
    assert notes == []


def test_case_and_spaces_are_no_difference() -> None:
    _, notes = merge_pages(SCHEMA.fields, [page(1, shop="TEA HOUSE"), page(2, shop="Tea house")])
    assert notes == []


def test_lists_go_on_from_page_to_page() -> None:
    rows = [{"name": "Tea", "price": "1"}, {"name": "Milk", "price": "2"}]
    pages = [page(1, items=rows[:1], tags=["a"]), page(2), page(3, items=rows[1:], tags=["b"])]
    fields, _ = merge_pages(SCHEMA.fields, pages)
    assert fields["items"].value == rows
    assert fields["tags"].value == ["a", "b"]
    assert [fields[f"items.{n}.name"].page for n in (0, 1)] == [1, 3]


def test_a_row_that_a_page_break_cuts_becomes_one() -> None:
    halves = [{"name": "Tea", "price": None}], [{"name": None, "price": "1"}]
    fields, _ = merge_pages(SCHEMA.fields, [page(1, items=halves[0]), page(2, items=halves[1])])
    assert fields["items"].value == [{"name": "Tea", "price": "1"}]
    assert (fields["items.0.name"].page, fields["items.0.price"].page) == (1, 2)
    twice, _ = merge_pages(SCHEMA.fields, [page(1, items=halves[0]), page(2, items=halves[0])])
    assert twice["items"].value == [*halves[0], *halves[0]]


def test_values_have_the_form_of_the_schema() -> None:
    fields, _ = merge_pages(SCHEMA.fields, [page(1, shop="Tea", buyer={"name": "A", "town": None})])
    assert values_of(SCHEMA, fields) == {"shop": "Tea", "buyer": {"name": "A", "town": None}}
    fields, _ = merge_pages(SCHEMA.fields, [page(1, buyer=None, items=[])])
    assert values_of(SCHEMA, fields) == {"buyer": None, "items": []}
