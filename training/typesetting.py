"""Loaded fonts: the glyphs of a face at a size, how far they advance, and how high their ink is."""

from __future__ import annotations

import bisect
import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.fonts import PRINTABLE, Face

REFERENCE_PX = 64
MAX_LOADED = 2000
USUAL_SIZES_PX = (8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 22, 25, 28, 32, 36, 42, 48, 56, 66, 80)
# The highest and the lowest ink of printable ASCII is among these.
_TALL = "|()[]{}lhdbgjpqy_@Q$/"


class Typeface:
    """One face at one size (px). Glyphs are drawn once and kept; there is no kerning."""

    def __init__(self, path: str, size_px: int, *, hard: bool) -> None:
        self._font = ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)
        self._mode = "1" if hard else "L"
        box = self._font.getbbox(_TALL, anchor="ls")
        self.ascent_px, self.descent_px = -int(box[1]), int(box[3])
        self._advances: dict[str, float] = {}
        self._glyphs: dict[str, tuple[np.ndarray, int, int]] = {}

    def edges(self, text: str, tracking_px: float = 0.0) -> np.ndarray:
        """Left edge of every character and of the end, whole pixels: int64 (len(text) + 1,)."""
        steps = [0.0]
        for character in text:
            step = self._advances.get(character)
            if step is None:
                step = self._advances[character] = self._font.getlength(character)
            steps.append(step + tracking_px)
        return np.rint(np.cumsum(np.array(steps))).astype(np.int64)

    def glyph(self, character: str) -> tuple[np.ndarray, int, int]:
        """Coverage uint8 (height, width), and its corner (dx, dy) relative to the baseline."""
        found = self._glyphs.get(character)
        if found is None:
            left, top, right, bottom = self._font.getbbox(character, anchor="ls")
            x, y = int(np.floor(left)) - 1, int(np.floor(top)) - 1
            size = (int(np.ceil(right)) + 1 - x, int(np.ceil(bottom)) + 1 - y)
            image = Image.new("L", size)
            draw = ImageDraw.Draw(image)
            draw.fontmode = self._mode
            draw.text((-x, -y), character, 255, self._font, anchor="ls")
            found = self._glyphs[character] = (np.asarray(image), x, y)
        return found

    def draw(self, canvas: np.ndarray, text: str, edges: np.ndarray, baseline_px: int) -> None:
        """Adds a line to `canvas`, coverage uint8 (height, width), where the larger value stays.

        edges: page x of every character, as `edges` gives it, plus the start of the line.
        """
        height, width = canvas.shape
        for character, start in zip(text, edges.tolist(), strict=False):
            if character == " ":
                continue
            ink, dx, dy = self.glyph(character)
            x, y = start + dx, baseline_px + dy
            if x < 0 or y < 0 or x + ink.shape[1] > width or y + ink.shape[0] > height:
                # Only the empty rim of a glyph, or a swash, can reach over the border.
                ink = ink[max(0, -y) : height - y, max(0, -x) : width - x]
                x, y = max(0, x), max(0, y)
            target = canvas[y : y + ink.shape[0], x : x + ink.shape[1]]
            np.maximum(target, ink, out=target)


@functools.lru_cache(maxsize=MAX_LOADED)
def typeface(path: str, size_px: int, hard: bool = False) -> Typeface:
    """A face at a size; `hard` draws it without grey pixels."""
    return Typeface(path, size_px, hard=hard)


def usual_size(size_px: float) -> int:
    """The largest usual size not above `size_px`; few sizes keep most glyphs at hand."""
    return USUAL_SIZES_PX[max(0, bisect.bisect_right(USUAL_SIZES_PX, size_px) - 1)]


@functools.lru_cache(maxsize=4096)
def _em_measures(path: str) -> tuple[dict[str, float], float]:
    font = ImageFont.truetype(path, REFERENCE_PX, layout_engine=ImageFont.Layout.BASIC)
    box = font.getbbox(_TALL, anchor="ls")
    advances = {c: font.getlength(c) / REFERENCE_PX for c in PRINTABLE + " "}
    return advances, (box[3] - box[1]) / REFERENCE_PX


def width_em(face: Face, text: str) -> float:
    """Width of `text` in em as unhinted outlines have it: an estimate for choosing sizes."""
    advances = _em_measures(face.path)[0]
    return sum([advances[character] for character in text])


def ink_height_em(face: Face) -> float:
    """Height from the highest to the lowest ink of printable ASCII, in em."""
    return _em_measures(face.path)[1]
