"""Values found in the text of a page, however they are written there."""

from __future__ import annotations

import pytest

from ivl.documents.quotes import find_quote, number_in
from ivl.json_values import JsonValue


@pytest.mark.parametrize(
    ("value", "page", "quote"),
    [
        ("Zhang's  kitchen", "at ZHANG’S\nKITCHEN today", "ZHANG’S\nKITCHEN"),
        ("non-smoking", "a non–smoking room", "non–smoking"),
        ("office", "the oﬃce", "oﬃce"),
        ("STRASSE 5", "Straße 5", "Straße 5"),
        ("3 x 4", "3x4", "3x4"),
        ("東京", "住所：東京都", "東京"),
        ("EUR 1234.50", "Total 1.234,50 EUR", "1.234,50"),
        ("$45.13", "45.13$", "45.13"),
        ("1,234", "in all 1234", "1234"),
        (1234.5, "sum 1,234.50", "1,234.50"),
        (1234.5, "sum 1 234,5", "1 234,5"),
        (100000, "Rs 1,00,000", "1,00,000"),
        (29.55, "TOTAL EUR29.55", "29.55"),
        (-5, "discount −5.00", "−5.00"),
        (14.28, "2 14.28", "14.28"),
        (-5, "discount -€5.00", "5.00"),
        (-5, "discount 5,00-", "5,00"),
        (5, "- 5 apples", "5"),
        (0.1, "0,10", "0,10"),
        (0.5, "0,500 kg", "0,500"),
        ("2024-03-05", "on 5 March 2024.", "5 March 2024"),
        ("2024-03-05", "March 5th, 2024", "March 5th, 2024"),
        ("2024-03-05", "05.03.24", "05.03.24"),
        ("2024-03-05", "3/5/2024", "3/5/2024"),
        ("2024-03-05T10:20:00Z", "2024/03/05", "2024/03/05"),
        ("2024-03-05", "2024年3月5日", "2024年3月5日"),
        ("2024-03-01", "le 1er mars 2024", "1er mars 2024"),
        ("2024-01-05", "5 gennaio 2024", "5 gennaio 2024"),
        ("2024-03-05", "5 de março de 2024", "5 de março de 2024"),
        ("2024-03-05", "5 maart 2024", "5 maart 2024"),
        ("Mar 5, 2024", "le 5 mars 2024", "5 mars 2024"),
    ],
)
def test_it_is_found(value: JsonValue, page: str, quote: str) -> None:
    found = find_quote(value, page)
    assert found is not None
    assert found.text == quote
    assert page[found.start : found.end].strip() == quote


@pytest.mark.parametrize(
    ("value", "page"),
    [
        ("hat", "that hats"),
        ("5.71", "15.71 and 5.715"),
        (14, "14.28"),
        (5, "INV-15"),
        (1.2, "1,234"),
        (1234, "12 34"),
        (5, "a discount of -5.00"),
        (500, "0,500 kg"),
        ("Total 5", "the total was 5"),
        ("2024-03-05", "2024-05-04"),
        ("2024-03-05", "5 March 2025"),
        ("", "anything"),
        (None, "null"),
        (True, "true"),
    ],
)
def test_it_is_not_found(value: JsonValue, page: str) -> None:
    assert find_quote(value, page) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("EUR 1,234.50", 1234.5),
        ("1.234,50 €", 1234.5),
        ("1,234", 1234),
        ("0,75", 0.75),
        ("0,500 kg", 0.5),
        ("1.234.567,89", 1234567.89),
        ("CHF 1’234.50", 1234.5),
        ("29,-", 29),
        ("CHF 29.–", 29),
        ("-3", -3),
        ("-€5.00", -5),
        ("EUR-29,55", -29.55),
        ("- EUR 5.00", -5),
        ("–5,00 €", -5),
        ("5,00-", -5),
        ("5,00- EUR", -5),
        ("(5.00)", -5),
        ("(€ 5.00)", -5),
        ("7 %", 7),
        ("2 x 5", None),
        ("seventeen", None),
        ("Order no. 5", None),
    ],
)
def test_a_printed_amount_is_a_number(text: str, number: float | None) -> None:
    assert number_in(text) == number
