"""Answers that go round in circles: models that read documents sometimes write one stretch of text
over and over, until their context is full.

A table may have forty rows without a word in them, a form a line of dots, and a sheet of labels the
same address twenty times. Nothing that ends by itself is called a loop here: what repeats is looked
at while an answer is being written, by `LoopWatch`, and when it was cut off, by `repeated_tail`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# While an answer is being written, so many characters at its end must be one unit, so many times
# over. A page holds a hundred lines: a column of one word is shorter than this, and so is a sheet
# of thirty labels.
SURE_CHARACTERS: Final = 2_000
SURE_TIMES: Final = 5
# Of units without a letter or a digit, such as rows of empty cells and leaders of dots.
EMPTY_CHARACTERS: Final = 8_000
# Where the room ran out, less is needed: something that ended by itself would have ended.
CUT_OFF_CHARACTERS: Final = 240
CUT_OFF_TIMES: Final = 3

_LOOK_EVERY: Final = 64
_LONGEST_UNIT: Final = 4_000
# The last characters are looked for before: each place where they stand gives a period.
_PROBE: Final = 24
_MOST_PERIODS: Final = 12
_TAGS: Final = re.compile(r"<[^<>]*>")
_DIGITS: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Loop:
    """`unit` stands `times` times at the end of a text, from the character `start` on."""

    unit: str
    times: int
    start: int

    def cut(self, text: str) -> str:
        """The text with the unit once."""
        return text[: self.start + len(self.unit)].rstrip()


def repeated_tail(text: str) -> Loop | None:
    """What repeats at the end of an answer that was cut off."""
    return _loop(text, CUT_OFF_CHARACTERS, CUT_OFF_TIMES, empty_characters=SURE_CHARACTERS)


class LoopWatch:
    """Looks at an answer as it comes."""

    def __init__(self) -> None:
        self.text = ""
        self._looked = 0

    def push(self, text: str) -> bool:
        """Takes new text; whether the answer is in a loop by now."""
        self.text += text
        if len(self.text) - self._looked < _LOOK_EVERY or len(self.text) < SURE_CHARACTERS:
            return False
        self._looked = len(self.text)
        return _loop(self.text, SURE_CHARACTERS, SURE_TIMES, EMPTY_CHARACTERS) is not None


def _loop(text: str, characters: int, times: int, empty_characters: int) -> Loop | None:
    """The loop at the end of a text; numbers that count on, as of lines of a list, are taken for
    alike, and must fill twice as much."""
    return _exact_loop(text, characters, times, empty_characters) or _counting_loop(
        text, 2 * characters, times, empty_characters
    )


def _exact_loop(text: str, characters: int, times: int, empty_characters: int) -> Loop | None:
    text = text.rstrip()
    for period in _periods(text):
        start = _start_of(text, period)
        unit = text[start : start + period]
        is_empty = not any(letter.isalnum() for letter in _TAGS.sub("", unit))
        count, length = (len(text) - start) // period, len(text) - start
        if count >= times and length >= (empty_characters if is_empty else characters):
            return Loop(unit, count, start)
    return None


def _counting_loop(text: str, characters: int, times: int, empty_characters: int) -> Loop | None:
    """In lines alone, whose numbers are left out of the comparison."""
    lines = text.rstrip().splitlines(keepends=True)
    plain = [_DIGITS.sub("0", line) for line in lines]
    if plain == lines:
        return None
    found = _exact_loop("".join(plain), characters, times, empty_characters)
    per_unit = 0 if found is None else found.unit.count("\n")
    if found is None or not per_unit:
        return None
    # Back to the text itself, by whole lines.
    first = "".join(plain)[: found.start].count("\n")
    while first + per_unit < len(lines) and plain[first] != plain[first + per_unit]:
        first += 1
    unit = "".join(lines[first : first + per_unit])
    return Loop(unit, (len(lines) - first) // per_unit, sum(map(len, lines[:first])))


def _periods(text: str) -> list[int]:
    """Distances at which the last characters stand before, the smallest first."""
    probe, periods, end = text[-_PROBE:], list[int](), len(text) - 1
    if len(probe) < _PROBE:
        return []
    least = len(text) - _PROBE - _LONGEST_UNIT
    while len(periods) < _MOST_PERIODS:
        at = text.rfind(probe, max(0, least), end)
        if at < 0:
            break
        periods.append(len(text) - _PROBE - at)
        end = at + _PROBE - 1
    return periods


def _start_of(text: str, period: int) -> int:
    """From where on every character is the one that stands `period` before it, and so the first
    unit begins."""
    start, step = len(text) - period, period
    while start >= step and text[start - step : start] == text[start : start + step]:
        start -= step
    while start > 0 and text[start - 1] == text[start - 1 + period]:
        start -= 1
    return start
