"""How sure a value is, and what it rests on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ivl.documents.field_values import AnsweredToken, Fields, better, read_fields
from ivl.documents.schemas import schema_of

SCHEMA = schema_of(
    {
        "type": "object",
        "properties": {
            "shop": {"type": ["string", "null"]},
            "total": {"type": ["number", "null"], "x-as-printed": True},
            "paid": {"type": "boolean"},
            "items": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "price": {"type": "number"}},
                },
            },
        },
        "required": ["shop"],
    }
)
PAGE = "Zhang's Kitchen\nTea 2.50\nTOTAL EUR 2.50"


def letters(text: str, sure: dict[str, float] | None = None) -> list[AnsweredToken]:
    """Each letter a token: certain, but for those of the stretches in `sure`, which each have this
    probability together."""
    logprobs = [0.0] * len(text)
    for stretch, probability in (sure or {}).items():
        start = text.index(stretch)
        for at in range(start, start + len(stretch)):
            logprobs[at] = math.log(probability) / len(stretch)
    return [AnsweredToken(logprob, at, at + 1) for at, logprob in enumerate(logprobs)]


def fields_of(text: str, sure: dict[str, float] | None = None, **more: Any) -> Fields:
    return read_fields(SCHEMA.fields, text, letters(text, sure), page_text=PAGE, page=3, **more)


def test_a_value_has_the_probability_of_its_tokens() -> None:
    text = '{"shop": "Zhang\'s Kitchen", "total": "EUR 2.50"}'
    found = fields_of(text, {'"Zhang\'s Kitchen"': 0.7, "EUR 2.50": 0.9, '"total": ': 0.001})
    assert found["shop"].confidence == pytest.approx(0.7)
    assert (found["shop"].quote, found["shop"].page) == ("Zhang's Kitchen", 3)
    assert (found["total"].value, found["total"].quote) == (2.5, "EUR 2.50")
    assert found["total"].confidence == pytest.approx(0.9)  # what the grammar forced costs nothing


def test_a_token_that_reaches_over_the_edge_counts() -> None:
    text = '{"shop": null, "total": null}'
    tokens = [AnsweredToken(math.log(0.8), 0, 14), AnsweredToken(math.log(0.9), 14, len(text))]
    found = read_fields(SCHEMA.fields, text, tokens)
    assert found["shop"].confidence == pytest.approx(0.8)
    assert found["total"].confidence == pytest.approx(0.9)


def test_null_is_not_missing() -> None:
    found = fields_of('{"shop": null}')
    assert (found["shop"].status, found["shop"].confidence) == ("null", 1.0)
    assert (found["total"].status, found["total"].confidence) == ("missing", None)


def test_what_does_not_stand_on_the_page_is_doubtful() -> None:
    found = fields_of('{"shop": "Wong\'s Kitchen", "paid": true}')
    assert (found["shop"].status, found["shop"].confidence) == ("doubtful", 0.5)
    assert found["shop"].quote is None
    assert (found["paid"].status, found["paid"].confidence) == ("ok", 1.0)  # it is judged


def test_without_the_page_nothing_is_looked_for() -> None:
    text = '{"shop": "Wong\'s Kitchen"}'
    [shop] = read_fields(SCHEMA.fields[:1], text, letters(text)).values()
    assert (shop.status, shop.confidence, shop.quote) == ("ok", 1.0, None)


def test_an_amount_that_is_no_number_is_not_kept() -> None:
    found = fields_of('{"total": "two fifty"}')
    assert (found["total"].value, found["total"].status) == (None, "doubtful")


def test_the_lowest_confidence_can_be_chosen() -> None:
    text, sure = '{"shop": "Zhang\'s Kitchen"}', {"Zhang": 0.7}
    assert fields_of(text, sure, min_confidence=0.6)["shop"].status == "ok"
    assert fields_of(text, sure, min_confidence=0.8)["shop"].status == "doubtful"


def test_rows_have_cells() -> None:
    text = '{"items": [{"name": "Tea", "price": 2.5}, {"name": "Milk"}]}'
    found = fields_of(text, {"Tea": 0.8})
    assert found["items"].value == [{"name": "Tea", "price": 2.5}, {"name": "Milk"}]
    assert found["items.0.name"].confidence == pytest.approx(0.8)
    assert found["items.0.price"].quote == "2.50"
    assert found["items.1.name"].confidence == 0.5
    assert found["items.1.price"].status == "missing"
    assert found["items"].confidence == pytest.approx((0.8 + 1.0 + 0.5) / 3)


def test_an_answer_that_was_cut_off_gives_what_is_whole() -> None:
    found = fields_of('{"shop": "Zhang\'s Kitchen", "items": [{"name": "Tea"}, {"na')
    assert found["shop"].status == "ok"
    assert found["items"].value == [{"name": "Tea"}]
    assert found["total"].status == "missing"
    assert all(one.status == "missing" for one in fields_of("").values())


def test_the_surer_answer_is_kept() -> None:
    shop = SCHEMA.fields[0]
    right, wrong = '{"shop": "Zhang\'s Kitchen"}', '{"shop": "Wong\'s Kitchen"}'
    old, new = fields_of(wrong), fields_of(right, {"Zhang": 0.7})
    kept = better(old, new, shop)["shop"]
    assert (kept.value, kept.attempts) == ("Zhang's Kitchen", 2)
    kept = better(new, old, shop)["shop"]
    assert (kept.value, kept.attempts) == ("Zhang's Kitchen", 2)
