"""Where values stand in JSON, and what is left of JSON that was cut off."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from ivl.documents.json_spans import read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=5)


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans())
def test_it_reads_what_python_reads(data: dict, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    found = read_json(text)
    assert found.is_whole
    assert found.data == data
    for path, span in found.spans.items():
        value = data
        for key in path:
            value = value[key]  # type: ignore[index]
        assert json.loads(text[span.start : span.end]) == value


@given(OBJECTS, st.data())
def test_of_a_beginning_it_keeps_what_is_whole(data: dict, draw: st.DataObject) -> None:
    text = json.dumps(data)
    found = read_json(text[: draw.draw(st.integers(0, len(text) - 1))])
    assert not found.is_whole
    for path in found.spans:
        value, kept = data, found.data
        for key in path:
            value, kept = value[key], kept[key]  # type: ignore[index]
        assert kept == value


def test_half_a_row_is_none() -> None:
    text = '{"rows": [{"name": "Tea", "price": 1}, {"name": "Cof'
    assert read_json(text).data == {"rows": [{"name": "Tea", "price": 1}]}
    assert list(read_json(text).spans) == [("rows", 0, "name"), ("rows", 0, "price")]


def test_a_number_at_the_end_may_go_on() -> None:
    assert read_json('{"total": 12').data == {}


def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    text = '{"a": [1, 2], "a": "x"}'
    found = read_json(text)
    assert found.data == json.loads(text)
    assert list(found.spans) == [("a",)]


def test_what_is_no_json_is_nothing() -> None:
    assert read_json("The total is 5.").data is None
    assert read_json("").data is None
