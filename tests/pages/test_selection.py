"""Which pages are chosen by what people write."""

from __future__ import annotations

import pytest

from ivl.errors import RequestError
from ivl.pages.selection import check, choose


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("3", [3]),
        ("1-4", [1, 2, 3, 4]),
        ("7-", [7, 8, 9, 10]),
        ("-1", [10]),
        ("-3-", [8, 9, 10]),
        ("-3--1", [8, 9, 10]),
        ("2--8", [2, 3]),
        ("-2-10", [9, 10]),
        ("1-4,7,-1", [1, 2, 3, 4, 7, 10]),
        (" 7 , 1-2,\t2 ", [1, 2, 7]),
        ("8-99", [8, 9, 10]),
        ("9,11,12", [9]),
        ("-99-2", [1, 2]),
        ("-99,1", [1]),
        ("9--9,1", [1]),
        ("4-4", [4]),
    ],
)
def test_pages_are_chosen_in_their_order_each_once(text: str, chosen: list[int]) -> None:
    check(text)
    assert choose(text, 10) == chosen


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ",", "1,", "0", "1-0", "-0", "a", "1-2-3", "1 2", "1..3", "--1", "1--", "1---2"),
        *("+1", "4-2", "-1--3", "\N{ARABIC-INDIC DIGIT ONE}", "1.5", "1" * 5000),
    ],
)
def test_what_names_no_pages_is_told_before_a_file_is_open(text: str) -> None:
    for ask in (check, lambda text: choose(text, 10)):
        with pytest.raises(RequestError) as caught:
            ask(text)
        assert "1-4,7,-1" in caught.value.hint


@pytest.mark.parametrize(("text", "count"), [("11", 10), ("2-", 1), ("-2", 1), ("9--9", 10)])
def test_a_file_without_any_of_them_says_how_many_it_has(text: str, count: int) -> None:
    check(text)
    with pytest.raises(RequestError, match=rf"{text} in a file of {count} page"):
        choose(text, count)
