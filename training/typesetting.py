"""Loaded fonts: sizes, advances and ink heights, and the boxes of characters in a line."""

from __future__ import annotations

import functools

import numpy as np
from PIL import ImageFont

from training.fonts import PRINTABLE, Face

REFERENCE_PX = 64
_TALL = "|()[]{}lhdbgjpqy_@Q$/"


class Typeface:
    """One face at one size (px). Positions follow PIL's basic layout, kerning included."""

    def __init__(self, path: str, size_px: int) -> None:
        self.font = ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)
        box = self.font.getbbox(_TALL, anchor="ls")
        self.ascent_px, self.descent_px = -int(box[1]), int(box[3])
        self._advances: dict[str, float] = {}

    def _length(self, text: str) -> float:
        length = self._advances.get(text)
        if length is None:
            length = self._advances[text] = self.font.getlength(text)
        return length

    def edges(self, text: str) -> np.ndarray:
        """x of the left edge of every character and of the end: float64 (len(text) + 1,)."""
        steps = [0.0]
        for first, second in zip(text, text[1:]):
            steps.append(self._length(first + second) - self._length(second))
        if text:
            steps.append(self._length(text[-1]))
        return np.cumsum(steps)


@functools.lru_cache(maxsize=1024)
def typeface(path: str, size_px: int) -> Typeface:
    return Typeface(path, size_px)


@functools.lru_cache(maxsize=1024)
def _em_advances(path: str) -> tuple[dict[str, float], float]:
    face = typeface(path, REFERENCE_PX)
    advances = {c: face.font.getlength(c) / REFERENCE_PX for c in PRINTABLE + " "}
    return advances, (face.ascent_px + face.descent_px) / REFERENCE_PX


def width_em(face: Face, text: str) -> float:
    """Width of `text` in em, without hinting or kerning: an estimate for choosing sizes."""
    advances = _em_advances(face.path)[0]
    return sum(advances[character] for character in text)


def ink_height_em(face: Face) -> float:
    """Height from the highest to the lowest ink of printable ASCII, in em."""
    return _em_advances(face.path)[1]
