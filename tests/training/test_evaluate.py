"""The bundled model reads pages that its training never saw about as well as docs/demo.md says.

Twenty pages, with wide bounds; `python -m training.evaluate` measures it on 500.
"""

from __future__ import annotations

import pytest

import ivl
from ivl.measure.metrics import edit_distance
from tests.training.installed_fonts import skip_without_fonts

skip_without_fonts("train")

from training.evaluate import (  # noqa: E402
    BLANK_EVERY,
    KINDS,
    Tally,
    evaluate,
    evaluation_page,
    is_scan,
    note_reading,
    right_fields,
    table,
)

NUM_PAGES = 20
MAX_LINES = 12
MOST_ERRORS = {"clean": 0.2, "scan": 0.3}
LEAST_RIGHT = {"facts": 0.4, "fields": 0.25, "kinds": 0.6}
"""Of the answers to questions, of the fields of JSON objects, of the kinds of pages."""


@pytest.fixture(scope="module")
def tally() -> Tally:
    demo = ivl.load("demo", device="cpu", dtype="float32")
    return evaluate(demo, NUM_PAGES, max_lines=MAX_LINES)


@pytest.mark.parametrize("look", ["clean", "scan"])
def test_the_bundled_model_reads_most_of_the_letters(tally: Tally, look: str) -> None:
    assert tally.errors[look] <= MOST_ERRORS[look] * tally.lengths[look]


@pytest.mark.parametrize("asked", LEAST_RIGHT)
def test_it_answers_what_it_is_asked(tally: Tally, asked: str) -> None:
    answers = getattr(tally, asked)
    assert len(answers) > 10
    assert sum(answers) >= LEAST_RIGHT[asked] * len(answers)


def test_a_blank_page_is_left_blank(tally: Tally) -> None:
    assert tally.blank == [True]


def test_every_kind_is_read_clean_and_as_a_scan() -> None:
    pages = [(evaluation_page(index).kind, is_scan(index)) for index in range(2 * BLANK_EVERY)]
    assert set(pages) >= {(kind, scanned) for kind in KINDS for scanned in (False, True)}
    assert [kind for kind, _ in pages].count("blank") == 2


def test_a_field_counts_when_its_value_is_the_one_that_is_printed() -> None:
    wanted = '{"total": "5.00", "tax": null}'
    assert right_fields(wanted, wanted) == [True, True]
    assert right_fields(wanted, '{"total": "5.0", "tax": null, "shop": "x"}') == [False, True]
    assert right_fields(wanted, '{"total": "5.00"}') == [True, False]
    assert right_fields(wanted, '{"total": "5.00", "tax": nu') == [False, False]


def test_errors_are_counted_for_the_sort_of_page_and_its_look() -> None:
    page = evaluation_page(0)
    tally = Tally()
    note_reading(tally, page, True, page.text[1:], 1.0)
    result = tally.summary()
    assert result["error_rate_receipt_scan"] == round(1 / len(page.text), 4)
    assert edit_distance(page.text, page.text[1:]) == tally.errors["scan"] == 1
    assert "error_rate_clean" not in result
    assert f"{100 / len(page.text):.1f} %" in table(result, "eval", 25)
