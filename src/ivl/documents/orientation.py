"""Which way the lines of text of a page run, from its pixels: a cheap sign before a model is asked.

A page is reduced to 85 dots an inch and cut into blocks of 19 mm. Ink that is smeared along its
lines keeps the stripes of lines and gaps; smeared across them it becomes an even grey. That tells
paragraphs, but the edges of a narrow column are stripes too. So letters are also joined to words,
which are longer than they are high. The blocks that have as much ink as text vote by each sign, and
all must agree. Rules of tables are taken away before.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from PIL import Image, ImageFilter

_LONG_SIDE_PX: Final = 1000
_BLOCK_PX: Final = 64
"""At 5 degrees a line moves by 5.6 px across a block: less than half of what lines are apart."""
_RULE_PX: Final = 30
"""9 mm: longer than a stroke of a letter of 25 points."""
_BACKGROUND_PX: Final = 12
_LEAST_CONTRAST: Final = 14

_LEAST_INK: Final = 0.02
_MOST_INK: Final = 0.45
_CLEAR_BLOCK: Final = 1.25
"""How many times stronger one direction is in a block that votes."""
_FEWEST_BLOCKS: Final = 4
_MAJORITY: Final = 0.85

Direction = Literal["across", "down", "unclear"]


def lines_run(image: Image.Image) -> Direction:
    """Whether the lines of text run across the page as it is held (0 or 180 degrees) or down it (90
    or 270); unclear where there are few words, or pictures alone, or the signs do not agree.

    Tolerates 5 degrees of skew. 25 to 40 ms for two megapixels on a busy core. Measured on pages in
    the fonts that were there (DejaVu and Pillow's own), of 7 to 14 points, turned by up to 5
    degrees: full lines in one to three columns are told rightly (22 of 22, upright and turned); of
    tables of single words with strong rules one in six is told wrongly and most are unclear; lists
    of single words, receipts and columns of numbers are mostly unclear.
    """
    ink = _ink(image)
    blocks = _blocks(ink)
    if not len(blocks):
        return "unclear"
    share = blocks.mean((1, 2))
    usable = (share > _LEAST_INK) & (share < _MOST_INK)
    if usable.sum() < _FEWEST_BLOCKS:
        return "unclear"
    # Letters of 7 points are joined by 2 px, those of 14 points by 3.
    joined = _grown(_grown(ink))
    votes: set[Direction] = {
        _majority(*_stripes(blocks[usable])),
        _majority(*_words(_blocks(joined)[usable])),
        _majority(*_words(_blocks(_grown(joined))[usable])),
    }
    return votes.pop() if len(votes) == 1 else "unclear"


def _majority(across: np.ndarray, down: np.ndarray) -> Direction:
    """What most blocks say that say anything clearly."""
    votes_across = int((across > _CLEAR_BLOCK * down).sum())
    votes_down = int((down > _CLEAR_BLOCK * across).sum())
    if max(votes_across, votes_down) < _FEWEST_BLOCKS:
        return "unclear"
    share = votes_across / (votes_across + votes_down)
    if share >= _MAJORITY:
        return "across"
    return "down" if share <= 1 - _MAJORITY else "unclear"


def _ink(image: Image.Image) -> np.ndarray:
    """Where there is something thin that is darker or lighter than what is around it, bool (h, w),
    less what is as long and straight as a rule."""
    grey = image.convert("L")
    scale = _LONG_SIDE_PX / max(grey.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.BOX)
    around = grey.filter(ImageFilter.BoxBlur(_BACKGROUND_PX))
    distance = np.abs(np.asarray(grey, np.int16) - np.asarray(around, np.int16))
    strongest = float(np.quantile(distance[::3, ::3], 0.98))
    ink = distance > max(_LEAST_CONTRAST, 0.4 * strongest)
    # A thin rule that is askew goes from column to column.
    rules = _long_runs(_wider(ink)) | _long_runs(_wider(ink.T)).T
    # Its blurred edges too.
    rules[1:] |= rules[:-1]
    rules[:-1] |= rules[1:]
    rules[:, 1:] |= rules[:, :-1]
    rules[:, :-1] |= rules[:, 1:]
    return ink & ~rules


def _long_runs(ink: np.ndarray) -> np.ndarray:
    """The ink in runs down the columns of `_RULE_PX` or more."""
    if ink.shape[0] <= _RULE_PX:
        return np.zeros_like(ink)
    # Starts of runs of 1, 2, 4 ... pixels, then of all of them; and back again.
    starts, length = ink, 1
    while length < _RULE_PX:
        step = min(length, _RULE_PX - length)
        starts = starts[:-step] & starts[step:]
        length += step
    whole = np.zeros_like(ink)
    whole[: starts.shape[0]] = starts
    length = 1
    while length < _RULE_PX:
        step = min(length, _RULE_PX - length)
        spread = whole.copy()
        spread[step:] |= whole[:-step]
        whole = spread
        length += step
    return whole


def _wider(mask: np.ndarray) -> np.ndarray:
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    return wide


def _grown(mask: np.ndarray) -> np.ndarray:
    """By a pixel to all sides."""
    return _wider(_wider(mask).T).T


def _blocks(ink: np.ndarray) -> np.ndarray:
    """Float32 (blocks, 64, 64); blocks overlap by a half."""
    half = _BLOCK_PX // 2
    if min(ink.shape) < _BLOCK_PX:
        return np.zeros((0, _BLOCK_PX, _BLOCK_PX), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(ink, (_BLOCK_PX, _BLOCK_PX))
    return windows[::half, ::half].reshape(-1, _BLOCK_PX, _BLOCK_PX).astype(np.float32)


def _stripes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each block the strength of stripes across and of stripes down."""
    return _changes(blocks.mean(2)), _changes(blocks.mean(1))


def _words(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each block of grown ink, in which letters are joined to words, how often one enters ink
    going down and going across: words are longer than they are high."""
    inked = blocks > 0
    across = (inked[:, 1:] & ~inked[:, :-1]).sum((1, 2)) + 1
    down = (inked[:, :, 1:] & ~inked[:, :, :-1]).sum((1, 2)) + 1
    return across, down


def _changes(profiles: np.ndarray) -> np.ndarray:
    """The variance of profiles (blocks, 64) after a blur of 3 px, which strokes do not survive."""
    smooth = (profiles[:, :-2] + profiles[:, 1:-1] + profiles[:, 2:]) / 3
    return smooth.var(1)
