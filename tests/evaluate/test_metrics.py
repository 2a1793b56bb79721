"""Edit distance against a plain implementation by the definition."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from ivl.evaluate.metrics import character_error_rate, edit_distance


def by_definition(a: str, b: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = a[i - 1] == b[j - 1]
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same)
        )

    return distance(len(a), len(b))


@given(st.text("abc\N{SNOWMAN}", max_size=9), st.text("abc\N{SNOWMAN}", max_size=9))
def test_edit_distance_is_the_defined_one(a: str, b: str) -> None:
    assert edit_distance(a, b) == by_definition(a, b)


def test_error_rate_of_a_page() -> None:
    assert character_error_rate("TOTAL 12.50", "TOTAL 12.60") == 1 / 11
    assert character_error_rate("", "") == 0
    assert character_error_rate("", "invented") == 1
