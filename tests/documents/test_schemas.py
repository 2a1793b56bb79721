"""A JSON schema as the fields that are to be extracted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ivl.documents.extraction_questions import document_question, field_question
from ivl.documents.schemas import READY_SCHEMAS, load_schema, names_of, schema_of
from ivl.errors import RequestError


class Address(BaseModel):
    street: str
    town: str | None = None


class Line(BaseModel):
    name: str
    price: float | None


class Bill(BaseModel):
    shop: str
    tax_id: str | None
    address: Address | None = None
    lines: list[Line] = []
    remarks: list[str] = []


def of(properties: dict[str, Any], **more: Any) -> Any:
    return {"type": "object", "properties": properties, **more}


def test_a_class_becomes_fields() -> None:
    schema = load_schema(Bill)
    names = ["shop", "tax_id", "address.street", "address.town", "lines", "lines.name"]
    assert names_of(schema.fields) == [*names, "lines.price", "remarks"]
    by_name = {field.name: field for field in schema.fields}
    assert [by_name[name].kind for name in ("shop", "lines", "remarks")] == [
        *("value", "rows", "values"),
    ]
    assert (by_name["shop"].is_nullable, by_name["shop"].is_required) == (False, True)
    assert (by_name["tax_id"].is_nullable, by_name["tax_id"].is_required) == (True, True)
    assert not by_name["lines"].is_required
    assert schema.nullable_objects == {("address",)}
    assert schema.model is Bill


@pytest.mark.parametrize("name", READY_SCHEMAS)
def test_ready_schemas_are_there_by_name(name: str) -> None:
    schema = load_schema(name)
    assert all(field.description for field in schema.fields)
    assert all(field.is_nullable for field in schema.fields if field.is_required)
    assert "x-" not in json.dumps(schema.schema)


def test_a_file_of_that_name_comes_before_a_ready_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("receipt").write_text(json.dumps(of({"mine": {"type": "string"}})))
    assert names_of(load_schema("receipt").fields) == ["mine"]


def test_null_is_written_in_many_ways() -> None:
    ways: dict[str, Any] = {
        "a": {"type": ["string", "null"]},
        "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "c": {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/Name"}]},
        "d": {"enum": ["x", None]},
    }
    schema = schema_of(of(ways, **{"$defs": {"Name": {"type": "string"}}}))
    assert all(field.is_nullable for field in schema.fields)
    assert schema.fields[2].schema["type"] == "string"


def test_a_field_alone_keeps_its_place_and_what_it_refers_to() -> None:
    definitions = {"$defs": {"Id": {"type": "string"}}}
    raw = of({"seller": of({"id": {"$ref": "#/$defs/Id"}})}, **definitions)
    schema = schema_of(raw)
    alone: Any = schema.only(schema.fields[0])
    assert alone["required"] == ["seller"]
    assert alone["properties"]["seller"]["required"] == ["id"]
    assert alone["properties"]["seller"]["properties"]["id"]["type"] == "string"
    assert alone["$defs"] == {"Id": {"type": "string"}}


def test_lists_can_be_left_out() -> None:
    assert set(load_schema(Bill).without_lists()["properties"]) == {  # type: ignore[arg-type]
        *("shop", "tax_id", "address"),
    }
    only_lists = schema_of(of({"tags": {"type": "array", "items": {"type": "string"}}}))
    assert only_lists.without_lists() == only_lists.schema


def test_our_own_words_do_not_reach_the_grammar() -> None:
    amount = {"type": ["number", "null"], "x-as-printed": True}
    counted = {"type": "integer", "x-not-printed": True}
    schema = schema_of(of({"total": amount, "x-not-printed": counted}))
    properties: Any = schema.schema["properties"]
    assert properties["total"] == {"type": ["string", "null"]}
    assert properties["x-not-printed"] == {"type": "integer"}
    assert [field.is_copied for field in schema.fields] == [True, False]
    assert [field.is_printed for field in schema.fields] == [True, False]


def test_what_a_model_judges_is_not_looked_for() -> None:
    judged = {"paid": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}, "name": {"type": "string"}}
    assert [field.is_printed for field in schema_of(of(judged)).fields] == [False, False, True]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"type": "string"}, "no properties"),
        (of({}), "no properties"),
        (of({"a": {"$ref": "#/$defs/Gone"}}), "refers to #/\\$defs/Gone"),
        (of({"a": {"$ref": "#"}}), "deep"),
    ],
)
def test_what_is_no_list_of_fields_is_refused(raw: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        schema_of(raw)


def test_a_misspelled_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="reciept") as told:
        load_schema("reciept")
    assert "receipt" in told.value.hint
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RequestError, match="not JSON"):
        load_schema(tmp_path / "bad.json")


def test_questions_name_the_fields() -> None:
    fields = load_schema(Bill).fields
    full = document_question(fields, "full").splitlines()
    assert "- tax_id" in full
    assert "  - price: a number, with a point before decimals" in full
    assert document_question(fields, "short") == (
        "Extract as JSON: shop, tax id, address street, address town."
    )
    for wording in ("full", "short"):
        ways = {field_question(fields[1], attempt, wording) for attempt in (2, 3)}
        assert len(ways) == 2
        assert all("tax" in way for way in ways)
