"""Which pages of a file are meant: "1-4,7,-1".

    N       page N, from 1; -N is counted from the end, and -1 is the last page
    N-M     pages N to M; each may be counted from the end: `2--1` is from 2 to the last,
            `-3--1` the last three
    N-      from page N to the end: `7-`, or `-3-` for the last three

Parts are separated by commas, with spaces around them or not. Pages come in their order in the
file, each once.
"""

from __future__ import annotations

import re
from typing import Final

from ivl.errors import RequestError

_PART: Final = re.compile(r"(-?\d{1,9})(?:(-)(-?\d{1,9})?)?", re.ASCII)
_HINT: Final = (
    "Write them as 3, 1-4, 7- (to the end) or -1 (the last), with commas between: 1-4,7,-1."
)


def check(text: str) -> None:
    """RequestError, with a hint that shows how pages are written, for what cannot be parsed."""
    for first, last in _ranges(text):
        # Both ends from the same side, so that no file can make sense of it.
        if last is not None and (first > 0) == (last > 0) and first > last:
            raise RequestError(f"Pages {first}-{last} run backwards.", _HINT)


def choose(text: str, count: int) -> list[int]:
    """Of a file of `count` pages the numbers, from 1, of those that `text` names: in order, each
    once.

    What lies beyond the end of the file is left out. RequestError for what cannot be parsed, and
    where the file has none of the pages, which says how many it has.
    """
    check(text)
    chosen: set[int] = set()
    for first, last in _ranges(text):
        start, end = _from_front(first, count), count if last is None else _from_front(last, count)
        chosen.update(range(max(start, 1), min(end, count) + 1))
    if not chosen:
        pages = "1 page" if count == 1 else f"{count} pages"
        raise RequestError(f"There are no pages {text.strip()} in a file of {pages}.", _HINT)
    return sorted(chosen)


def _from_front(number: int, count: int) -> int:
    return number if number > 0 else count + 1 + number


def _ranges(text: str) -> list[tuple[int, int | None]]:
    """The first and the last page of every part, None for the end of the file."""
    ranges: list[tuple[int, int | None]] = []
    for part in map(str.strip, text.split(",")):
        found = _PART.fullmatch(part)
        if found is None:
            where = "" if part == text else f", in {text!r}"
            raise RequestError(f"{part!r} names no pages{where}.", _HINT)
        first, last = int(found[1]), int(found[3]) if found[3] else None
        if first == 0 or last == 0:
            raise RequestError(f"There is no page 0 (in {text!r}): the first is 1.", _HINT)
        ranges.append((first, last if found[2] else first))
    return ranges
