"""Which way the lines of text of a page run, from its pixels: a cheap sign before a model is asked.

A page is reduced to 85 dots an inch and cut into blocks of 19 mm. Ink that is smeared along its
lines keeps the stripes of lines and gaps; smeared across them it becomes an even grey. Each block
that has ink like text's votes for the direction in which its stripes are stronger. Rules of tables
are taken away before, and pictures have too much ink to vote.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from PIL import Image, ImageFilter

_LONG_SIDE_PX: Final = 1000
_BLOCK_PX: Final = 64
"""At 5 degrees a line moves by 5.6 px across a block: less than half of what lines are apart."""
_RULE_PX: Final = 40
"""12 mm: longer than a stroke of a letter of 36 points."""
_BACKGROUND_PX: Final = 12
_LEAST_CONTRAST: Final = 14

_LEAST_INK: Final = 0.02
_MOST_INK: Final = 0.45
_CLEAR_BLOCK: Final = 1.3
"""How many times stronger one direction's stripes are in a block that votes."""
_FEWEST_BLOCKS: Final = 4
_MAJORITY: Final = 0.75

_CLEAR_SKEW: Final = 0.12


def lines_run(image: Image.Image) -> Literal["across", "down", "unclear"]:
    """Whether the lines of text run across the page as it is held (0 or 180 degrees) or down it (90
    or 270); unclear where there are few words, or pictures alone, or both directions.

    Tolerates 5 degrees of skew. 15 to 25 ms for five megapixels on one core.
    """
    ink = _ink(image)
    across, down, usable = _stripes(ink)
    votes_across = int((usable & (across > _CLEAR_BLOCK * down)).sum())
    votes_down = int((usable & (down > _CLEAR_BLOCK * across)).sum())
    if max(votes_across, votes_down) < _FEWEST_BLOCKS:
        return "unclear"
    share = votes_across / (votes_across + votes_down)
    if share >= _MAJORITY:
        return "across"
    return "down" if share <= 1 - _MAJORITY else "unclear"


def looks_upside_down(image: Image.Image) -> bool | None:
    """For a page whose lines run across: whether it stands on its head, None where that is unclear.

    Holds for scripts with small letters, of which more reach up than down (Latin, Greek,
    Cyrillic): the ink of a line ends abruptly at its base and little by little at its top.
    """
    skew = _line_skew(image)
    return None if abs(skew) < _CLEAR_SKEW else skew > 0


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
    rules = _long_runs(ink) | _long_runs(ink.T).T
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


def _stripes(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each block, in one row: the strength of the stripes across and down, and whether its ink
    can be text's."""
    blocks = _blocks(ink)
    if not len(blocks):
        return (np.zeros(0), np.zeros(0), np.zeros(0, bool))
    share = blocks.mean((1, 2))
    across, down = np.ones(len(blocks)), np.ones(len(blocks))
    mask = ink
    for _ in range(DIL):
        mask = _grown(mask)
        b0 = _blocks(mask) > 0
        across *= (b0[:, 1:] & ~b0[:, :-1]).sum((1, 2)) + 1
        down *= (b0[:, :, 1:] & ~b0[:, :, :-1]).sum((1, 2)) + 1
    return across ** (1 / DIL), down ** (1 / DIL), (share > _LEAST_INK) & (share < _MOST_INK)


DIL = 2


def _grown(mask):
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    wide = grown.copy()
    wide[:, 1:] |= grown[:, :-1]
    wide[:, :-1] |= grown[:, 1:]
    return wide


def _blocks(ink: np.ndarray) -> np.ndarray:
    """Float32 (blocks, 64, 64); blocks overlap by a half."""
    half = _BLOCK_PX // 2
    if min(ink.shape) < _BLOCK_PX:
        return np.zeros((0, _BLOCK_PX, _BLOCK_PX), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(ink, (_BLOCK_PX, _BLOCK_PX))
    return windows[::half, ::half].reshape(-1, _BLOCK_PX, _BLOCK_PX).astype(np.float32)


def _changes(profiles: np.ndarray) -> np.ndarray:
    """The variance of profiles (blocks, 64) after a blur of 3 px, which strokes do not survive."""
    smooth = (profiles[:, :-2] + profiles[:, 1:-1] + profiles[:, 2:]) / 3
    return smooth.var(1)


def _line_skew(image: Image.Image) -> float:
    """How abruptly lines begin against how they end, -1 to 1; below 0 for upright text."""
    ink = _ink(image)
    across, down, usable = _stripes(ink)
    chosen = usable & (across > _CLEAR_BLOCK * down)
    if chosen.sum() < _FEWEST_BLOCKS:
        return 0.0
    profiles = _blocks(ink)[chosen].mean(2)
    steps = np.diff(profiles, axis=1) ** 3
    return float(steps.sum() / max(np.abs(steps).sum(), 1e-9))
