"""Words: numbers of things, and the word that somebody meant to type, as far as a slip of the
fingers explains it.

Words that are merely similar are never offered: who is told `force_image_size` for `vocab_size`
looks in the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterable


def counted(count: int, what: str) -> str:
    """`1 page`, `2 pages`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is with one to three slips, by its length; None if there is none.

    A slip is a letter too many, too few, wrong, or in its neighbour's place (optimal string
    alignment); capitals, and `-` for `_`, count as none.
    """
    plain = _plain(word)
    most = 1 if len(plain) < 5 else 2 if len(plain) < 15 else 3
    found = [
        (slips, candidate)
        for candidate in known
        if abs(len(candidate) - len(word)) <= most
        and (slips := _num_slips(plain, _plain(candidate))) <= most
        and slips < len(candidate)
    ]
    return min(found, key=lambda one: one[0])[1] if found else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names the nearest word, or else `otherwise`."""
    near = nearest(word, known)
    return otherwise if near is None else f"Did you mean {near!r}?"


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def _num_slips(a: str, b: str) -> int:
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
