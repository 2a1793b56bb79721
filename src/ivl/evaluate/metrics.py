"""How well a text was read."""

from __future__ import annotations

import numpy as np


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that turn `a` into `b` (Levenshtein, 1966)."""
    if not a or not b:
        return len(a) + len(b)
    codes = np.frombuffer(b.encode("utf-32-le"), np.uint32)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, character in enumerate(a, 1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(character)))
        row = np.concatenate(([i], kept))
        # An insertion costs one per step, so the best chain of them is a running minimum.
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])


def character_error_rate(truth: str, read: str) -> float:
    """Edit distance over the length of the truth; of an empty truth, 0 or 1."""
    return edit_distance(truth, read) / len(truth) if truth else float(bool(read))
