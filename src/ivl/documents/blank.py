"""Whether a page has nothing to read, from its pixels, before a model is asked to invent something.

What is printed on the front has sharp edges, however pale it is; what shows through from the back
was blurred by the paper. So the page, reduced to 120 dots an inch, is searched tile by tile for
fine structure beyond its noise. Each patch of it must then be explained: as show-through (blurred
and weak), as a scanner's dark border, a punch hole, a staple, a crease from edge to edge, or
specks of dust. One patch that is none of these, and the page is not blank. Lines of forms and
tables that are drawn sharply are something to read; so is a picture.

All sizes are those of an A4 sheet. The page is never called blank in doubt: a blurred or very
noisy scan of an empty sheet may be called not blank, which costs a reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

_LONG_SIDE_PX: Final = 1400
_PX_PER_MM: Final = _LONG_SIDE_PX / 297
_TILE_PX: Final = 8
"""A tile is 1.7 mm: the height of a small letter."""

# Measured on the pages that tests/documents/test_blank.py draws, 12 of each kind at four strengths
# of the scan's faults, in grey levels of 255 at 120 dots an inch. The energy of a tile is the mean
# square of what a blur of 1 px takes away. Grain alone has at most 3.5 times its typical energy;
# the strongest show-through of a sheet that can still be printed on (a fifth of the ink's contrast,
# blurred by 0.4 mm) has 2.6; a sharp line of 6 points with a twelfth of the contrast has 7.
_LEAST_ENERGY: Final = 1.5
_LEAST_OF_NOISE: Final = 4.2
_TYPICAL_TILES: Final = 0.25
"""The quantile of the tiles' energies that is taken for the noise: a full page has margins and
gaps between its lines."""
_WEAK: Final = 2.0
_MOST_WEAK: Final = 3
"""One tile or two that are hardly above the noise are noise, unless there are several."""
_MOST_NOISE: Final = 4.0
"""Grain of standard deviation 10 at 120 dots an inch; with more, what is found may be read."""

# An edge's width is its contrast divided by its steepest slope. Sharp print measures 2 to 3 px
# (the scan's own blur included), show-through of 0.3 mm blur 3 px and more.
_SOFT_EDGE_PX: Final = 3.0
_SHARPEST_SHARE: Final = 0.1
_STRONG_LEVELS: Final = 60
"""With this contrast even what is blurred is read: a photo that is out of focus."""

_COLOUR_ENERGY: Final = 25.0
"""Of half the difference of red and blue, in tiles of 3.4 mm: light yellow on white has 100."""

_DEEPEST_BORDER: Final = 0.12
"""Of the page's side: a sheet of A4 that lies askew by 3 degrees, and a little more."""
_WEDGE_TIP_PX: Final = 80
_LETTER_GAP_PX: Final = round(6 * _PX_PER_MM)

_MOST_CREASES: Final = 3
_CREASE_SPAN: Final = 0.92
_CREASE_CHANGE: Final = 0.1
_MOST_SPECKS: Final = 100
_SPECK_PX: Final = 5
_SPECK_GAP_PX: Final = 7
_MOST_PATCHES: Final = 3000
"""Active tiles beyond which there is no need to look closer."""

_Box = tuple[int, int, int, int]


def is_blank(image: Image.Image) -> bool:
    """Whether the page, upright or turned, has nothing to read on it.

    In doubt it is not blank. 40 ms in the middle, for 2 to 5 megapixels on a busy core.
    """
    page = _reduced(image)
    levels, energy = _fine_structure(np.asarray(page.convert("L")).astype(np.int16) * 16)
    if energy.size == 0:
        return False  # too small to tell anything
    border = _border_tiles(levels, energy.shape)
    threshold = _threshold(levels, energy)
    active = (energy > threshold) & ~border
    if _has_colour(page, border):
        return False
    if not active.any():
        return True
    # A crease is fainter in places.
    lines = (energy > threshold / 3) & ~border
    across, on_across = _crease_tiles(levels, lines, border, threshold)
    down, on_down = _crease_tiles(levels.T, lines.T, border.T, threshold)
    active &= ~(across | down.T | (on_across & on_down.T) | _edge_tiles(levels, threshold))
    if active.sum() > _MOST_PATCHES:
        return _is_soft(levels, np.argwhere(active))
    num_specks = num_weak = 0
    for tiles in _patches(active):
        specks = _num_specks(levels, tiles)
        num_specks += specks
        if specks or _is_soft(levels, tiles):
            continue
        if len(tiles) <= 2 and energy[tuple(tiles.T)].max() < _WEAK * threshold:
            num_weak += 1
            continue
        if _is_punch_hole(levels, tiles) or _is_staple(levels, tiles):
            continue
        return False
    return num_specks <= _MOST_SPECKS and num_weak <= _MOST_WEAK


def _reduced(image: Image.Image) -> Image.Image:
    scale = _LONG_SIDE_PX / max(image.size)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _smooth(levels: np.ndarray, axis: int) -> np.ndarray:
    """Weights 1, 2, 1 along an axis, which gets 2 shorter; int16 up to 4,096 in and out."""
    if axis:
        pairs = levels[:, :-1] + levels[:, 1:]
        total = pairs[:, :-1] + pairs[:, 1:]
    else:
        pairs = levels[:-1] + levels[1:]
        total = pairs[:-1] + pairs[1:]
    total += 2
    total >>= 2
    return total


def _fine_structure(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels less their finest grain (int16, sixteenths) and the energy of each tile (float32)."""
    if min(grey.shape) < 2 * _TILE_PX:
        return grey, np.zeros((0, 0), np.float32)
    levels = _smooth(_smooth(grey, 0), 1)
    blurred = _smooth(_smooth(_smooth(_smooth(levels, 0), 1), 0), 1)
    levels = levels[2:-2, 2:-2]
    rows, columns = (side // _TILE_PX for side in levels.shape)
    levels = levels[: rows * _TILE_PX, : columns * _TILE_PX]
    fine = (levels - blurred[: rows * _TILE_PX, : columns * _TILE_PX]).astype(np.float32)
    fine *= fine
    return levels, _tile_means(fine) / 256


def _tile_means(values: np.ndarray) -> np.ndarray:
    rows, columns = (side // _TILE_PX for side in values.shape)
    strips = values.reshape(rows, _TILE_PX, -1).sum(1, dtype=np.float32)
    return strips.reshape(rows, columns, _TILE_PX).sum(2) / _TILE_PX**2


def _threshold(levels: np.ndarray, energy: np.ndarray) -> float:
    """The energy above which a tile has more fine structure than the page's noise explains."""
    rows, columns = energy.shape
    sample = levels.reshape(rows, _TILE_PX, columns, _TILE_PX)[:, ::2, :, ::2]
    # White that is cut off at 255 has no noise, and black none at 0.
    grainy = (sample.max((1, 3)) < 250 * 16) & (sample.min((1, 3)) > 5 * 16)
    chosen = energy[grainy] if grainy.mean() > 0.2 else energy
    noise = min(float(np.quantile(chosen, _TYPICAL_TILES)), _MOST_NOISE)
    return max(_LEAST_ENERGY, _LEAST_OF_NOISE * noise)


def _has_colour(page: Image.Image, border: np.ndarray) -> bool:
    """Whether something stands out by its colour, for instance yellow on white."""
    if page.mode != "RGB":
        return False
    small = np.asarray(page.reduce(2)).astype(np.int16)
    _, energy = _fine_structure((small[:, :, 0] - small[:, :, 2]) * 8)
    rows, columns = (min(n, m // 2) for n, m in zip(energy.shape, border.shape, strict=True))
    covered = border[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).any((1, 3))
    return bool((energy[:rows, :columns][~covered] > _COLOUR_ENERGY).any())


# Borders and creases.


def _border_tiles(levels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The tiles that a dark border covers or touches, bool of the given shape."""
    paper = float(np.quantile(levels[::_TILE_PX, ::_TILE_PX], 0.75))
    dark = levels < 0.6 * paper
    covered = np.zeros(levels.shape, bool)
    for turns in range(4):
        # Views: each side in its turn is the left one.
        _cover_left(np.rot90(dark, turns), np.rot90(covered, turns))
    rows, columns = shape
    return covered.reshape(rows, _TILE_PX, columns, _TILE_PX).max((1, 3))


def _cover_left(dark: np.ndarray, covered: np.ndarray) -> None:
    """Marks the dark run at the beginning of each row, up to what breaks its outline."""
    deepest = int(dark.shape[1] * _DEEPEST_BORDER)
    runs = dark[:, : deepest + 1]
    depth = np.where(runs.all(1), deepest, (~runs).argmax(1))
    if not depth.any():
        return
    # A letter in a dark band ends the runs through it. Whatever is as near to it as letters are to
    # one another stays uncovered.
    depth = _spread(depth, _LETTER_GAP_PX, np.minimum)
    depth = _spread(depth, _LETTER_GAP_PX - 5, np.maximum)
    # The filters reach 3 px and JPEG's ringing a little further.
    # A wedge goes on where it is thinner than a pixel.
    reach = np.where(_spread(depth, _WEDGE_TIP_PX, np.maximum) > 0, depth + 5, 0)
    covered[np.arange(covered.shape[1])[None, :] < reach[:, None]] = True


def _spread(values: np.ndarray, radius: int, pick: np.ufunc) -> np.ndarray:
    """The least or the greatest within `radius` of each place."""
    padded = np.pad(values, radius, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1)
    return pick.reduce(windows, axis=1)


def _crease_tiles(
    levels: np.ndarray, lines: np.ndarray, border: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Up to three lines that cross the whole page from left to right: the tiles that they explain,
    and all that they pass through.

    Along itself a crease hardly changes; where a tile changes in that direction too, there is
    something else on the crease.
    """
    explained, passed = np.zeros(lines.shape, bool), np.zeros(lines.shape, bool)
    for _ in range(_MOST_CREASES):
        left = lines & ~passed
        bands = left[:-2] | left[1:-1] | left[2:]
        free = ~(border[:-2] & border[1:-1] & border[2:])
        spans = (bands & free).sum(1) / np.maximum(free.sum(1), lines.shape[1] // 2)
        if not spans.size or spans.max() < _CREASE_SPAN:
            break
        # Of the bands that have the line, the one with the line in its middle.
        same = np.flatnonzero(spans >= spans.max() - 1e-9)
        top = int(same[0] + same[same <= same[0] + 2][-1]) // 2
        strip = levels[top * _TILE_PX : (top + 3) * _TILE_PX]
        along = _slope_energy(strip[:, 2:] - strip[:, :-2], 1)
        beside = _slope_energy(strip[2:] - strip[:-2], 0)
        explained[top : top + 3] |= along <= _CREASE_CHANGE * beside.sum(0) + threshold
        passed[top : top + 3] = True
    return explained, passed


def _edge_tiles(levels: np.ndarray, threshold: float) -> np.ndarray:
    """The tiles at the page's edges that change towards the edge alone: a border of a pixel."""
    rows, columns = (side // _TILE_PX for side in levels.shape)
    found = np.zeros((rows, columns), bool)
    for turns in range(4):
        strip = np.rot90(levels, turns)[:_TILE_PX]
        along = _slope_energy(strip[:, 2:] - strip[:, :-2], 1)
        beside = _slope_energy(strip[2:] - strip[:-2], 0)
        even = (along <= _CREASE_CHANGE * beside + threshold)[0]
        # A wedge has a step where it grows by a pixel.
        even[1:-1] |= even[:-2] & even[2:] & (beside[0, :-2] > threshold)
        np.rot90(found, turns)[0] |= even
    return found


def _slope_energy(differences: np.ndarray, axis: int) -> np.ndarray:
    """The mean square of slopes in levels a pixel, of each tile."""
    width = [(1, 1) if side == axis else (0, 0) for side in range(2)]
    slopes = np.pad(differences, width).astype(np.float32) / 32
    return _tile_means(slopes * slopes)


# Patches.


def _patches(active: np.ndarray) -> Iterator[np.ndarray]:
    """Tiles that touch one another, also at corners, as int (n, 2) of rows and columns."""
    left = {(int(row), int(column)) for row, column in np.argwhere(active)}
    while left:
        first = left.pop()
        patch, open_ends = [first], [first]
        while open_ends:
            row, column = open_ends.pop()
            for near in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    patch.append(near)
                    open_ends.append(near)
        yield np.array(patch)


def _is_soft(levels: np.ndarray, tiles: np.ndarray) -> bool:
    """Whether all edges of a patch are as blurred and as weak as only show-through is."""
    contrast, slope = _edges(levels, tiles)
    width = contrast / np.maximum(slope, 1e-3)
    return bool(
        np.quantile(width, _SHARPEST_SHARE) >= _SOFT_EDGE_PX and contrast.max() < _STRONG_LEVELS
    )


def _edges(levels: np.ndarray, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The steepest edge of each tile: its contrast within 3 px, and its slope, in levels (a px)."""
    height, width = levels.shape
    offsets = np.arange(_TILE_PX)
    rows = np.clip(tiles[:, 0, None, None] * _TILE_PX + offsets[:, None], 1, height - 2)
    columns = np.clip(tiles[:, 1, None, None] * _TILE_PX + offsets, 1, width - 2)
    down = np.abs(levels[rows + 1, columns] - levels[rows - 1, columns])
    across = np.abs(levels[rows, columns + 1] - levels[rows, columns - 1])
    # Close to the length of the gradient.
    slopes = np.maximum(np.maximum(down, across), (down + across) * 0.7071)
    slopes = slopes.reshape(len(tiles), -1)
    steepest, each = slopes.argmax(1), np.arange(len(tiles))
    row = (rows + 0 * columns).reshape(len(tiles), -1)[each, steepest]
    column = (columns + 0 * rows).reshape(len(tiles), -1)[each, steepest]
    near = np.arange(-3, 4)
    around = levels[
        np.clip(row[:, None, None] + near[:, None], 0, height - 1),
        np.clip(column[:, None, None] + near, 0, width - 1),
    ].reshape(len(tiles), -1)
    contrast = (around.max(1) - around.min(1)) / 16
    return contrast, slopes[each, steepest] / 32


def _ink(levels: np.ndarray, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A patch cut out with a margin: how far each pixel is from the paper, and whether it is ink,
    which is more than half as far as the farthest."""
    top, left = np.maximum(tiles.min(0) * _TILE_PX - _TILE_PX, 0)
    bottom, right = (tiles.max(0) + 2) * _TILE_PX
    cut = levels[top:bottom, left:right].astype(np.float32)
    rim = np.concatenate([cut[0], cut[-1], cut[:, 0], cut[:, -1]])
    distance = np.abs(cut - np.median(rim))
    return distance, distance > distance.max() / 2


def _num_specks(levels: np.ndarray, tiles: np.ndarray) -> int:
    """How many specks of dust a patch is; 0 where it is anything else.

    Specks are smaller than 1 mm, and farther from one another than letters are.
    """
    if len(tiles) > 24:
        return 0
    _, ink = _ink(levels, tiles)
    boxes: list[_Box] = []
    for blob in _patches(ink):
        (top, left), (bottom, right) = blob.min(0), blob.max(0)
        if bottom - top >= _SPECK_PX or right - left >= _SPECK_PX:
            return 0
        boxes.append((top, left, bottom, right))
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            apart = max(
                *(other[0] - one[2], one[0] - other[2]), *(other[1] - one[3], one[1] - other[3])
            )
            if apart < _SPECK_GAP_PX:
                return 0
    return len(boxes)


def _is_punch_hole(levels: np.ndarray, tiles: np.ndarray) -> bool:
    """A filled disc of 4 to 8 mm within 25 mm of an edge of the page."""
    distance, ink = _ink(levels, tiles)
    (top, left), (bottom, right) = np.argwhere(ink).min(0), np.argwhere(ink).max(0) + 1
    height, width = bottom - top, right - left
    if not (4 <= height / _PX_PER_MM <= 8 and 0.85 <= height / width <= 1 / 0.85):
        return False
    middle = (tiles.min(0) + tiles.max(0) + 1) / 2 * _TILE_PX
    if min(*middle, *(np.array(levels.shape) - middle)) > 25 * _PX_PER_MM:
        return False
    # A disc fills pi / 4 = 0.785 of its box.
    if not 0.70 <= ink.sum() / (height * width) <= 0.86:
        return False
    quarter = height // 4
    inside = distance[top + quarter : bottom - quarter, left + quarter : right - quarter]
    return bool(inside.std() < 0.1 * inside.mean())


def _is_staple(levels: np.ndarray, tiles: np.ndarray) -> bool:
    """A straight thin stroke of 6 to 16 mm without gaps, within 25 mm of a corner of the page."""
    _, ink = _ink(levels, tiles)
    places = np.argwhere(ink) / _PX_PER_MM
    middle = (tiles.min(0) + tiles.max(0) + 1) / 2 * _TILE_PX
    from_edges = np.minimum(middle, np.array(levels.shape) - middle) / _PX_PER_MM
    if from_edges.max() > 25 or len(places) < 20:
        return False
    places -= places.mean(0)
    _, axes = np.linalg.eigh(places.T @ places)
    along, beside = places @ axes[:, 1], places @ axes[:, 0]
    length = np.ptp(along)
    # A line of letters of 6 points is 1.1 mm high at least, and has gaps.
    if not 6 <= length <= 16 or np.ptp(beside) > 1.3 or beside.std() > 0.26:
        return False
    filled = np.histogram(along, bins=int(length / 0.5))[0]
    return bool(filled.min() >= 0.4 * filled.mean())
