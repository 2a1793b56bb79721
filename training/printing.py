"""Sets the lines of a page: sizes, places, ink, and the box of every character.

A page is read as one tile of `TILE_PX` squared that the whole page is stretched to. So the
geometry is chosen there first (line pitch, width of a character), and the size of the page in
pixels follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from training.demo_config import TILE_PX
from training.fonts import Face, faces
from training.lines import Content, Line
from training.typesetting import ink_height_em, typeface, usual_size, width_em
from training.words import pick

MIN_PITCH_PX, MAX_PITCH_PX, MAX_TAG_PITCH_PX = 16.0, 40.0, 60.0
LEAST_CHAR_PX, GOOD_CHAR_PX, MAX_CHAR_PX = 7.0, 7.6, 30.0
MIN_SIDE_PX, MAX_SIDE_PX, MAX_HEIGHT_PX, MIN_FONT_PX = 200, 1000, 1500, 11
FACE_TRIES = 8
COLUMN_GAP_EM = 1.0
MOST_ASPECT, EXTREME_ASPECT = 4.0, 2.0
LONG_LINES, UPRIGHT_SHARE, UPRIGHT = 13, 0.8, (0.4, 0.72)
"""Pages of more lines are mostly upright: their width over their height."""


class FaceTable:
    """The faces of one side, drawn by weight."""

    def __init__(self, split: str) -> None:
        self._faces = faces(split)
        self._sums = np.cumsum([face.weight for face in self._faces])
        self._bold = {face.family: face for face in self._faces if face.style == "bold"}

    def draw(self, rng: np.random.Generator) -> Face:
        return self._faces[int(np.searchsorted(self._sums, rng.random() * self._sums[-1]))]

    def bold(self, face: Face) -> Face:
        """The bold face of the same family, or `face` itself."""
        return self._bold.get(face.family, face)


@dataclass(slots=True)
class _Placed:
    line: Line
    face: Face
    font_px: int = 0
    edges: list[np.ndarray] = field(default_factory=list)
    """Of each of the line's parts, from its own left end."""
    columns_px: list[int] = field(default_factory=list)
    """Widths of the columns of the line's table."""
    width_px: int = 0
    top_px: int = 0
    baseline_px: int = 0
    bottom_px: int = 0
    x_px: int = 0


@dataclass(slots=True)
class _Sheet:
    """Everything that all lines of a page share. Positions in px of the page."""

    face: Face
    hard: bool
    tracking_em: float
    pitch_ratio: float
    font_px: int = 0
    pitch_px: float = 0.0
    width_px: int = 0
    height_px: int = 0
    block_px: int = 0
    block_x_px: int = 0

    def pitch_em(self) -> float:
        return self.pitch_ratio * ink_height_em(self.face)


def print_page(
    rng: np.random.Generator, content: Content, table: FaceTable
) -> tuple[np.ndarray, str, np.ndarray]:
    """Sets `content` in random type: coverage of ink, the text, and its boxes.

    coverage: uint8 (height, width), 255 = full ink. boxes: float32 (len(text), 4), x0 y0 x1 y1 in
    px, from the line's highest to its lowest possible ink; NaN for spaces and newlines.
    """
    lines = content.lines
    if sum(_units(line) for line in lines) > 25.5:  # too much for the tile: no extras
        for line in lines:
            line.scale, line.gap, line.rule, line.inverted = 1.0, 0.0, False, False
    for line in lines:  # a large line must not make all others narrow
        line.scale = min(line.scale, max(1.0, 34 / (len(line.text) + 2)))
    sheet, placed = _choose_faces(rng, lines, table)
    _choose_geometry(rng, content, sheet, placed)
    _measure(sheet, placed)
    _place(rng, sheet, placed)
    canvas = np.zeros((sheet.height_px, sheet.width_px), dtype=np.uint8)
    if rng.random() < 0.12:
        _frame(canvas, placed)
    boxes = [_ink(canvas, item, sheet) for item in placed]
    _draw_grid(canvas, sheet, placed)
    read = [i for i, line in enumerate(lines) if not line.decoration]
    text = "\n".join(lines[i].text for i in read)
    return canvas, text, np.concatenate([boxes[i] for i in read])[:-1]


def _units(line: Line) -> float:
    """Height of a line and its gap, in line pitches."""
    return line.scale + line.gap + (0.3 if line.inverted else 0.0)


def _line_em(item: _Placed, tracking_em: float) -> float:
    width = sum(width_em(item.face, part) + tracking_em * len(part) for part in item.line.parts)
    return (width + COLUMN_GAP_EM * (len(item.line.parts) - 1)) * item.line.scale


def _table_em(rows: list[_Placed], tracking_em: float) -> float:
    """Width of a table: each column is as wide as its widest cell."""
    cells = zip(*(item.line.cells for item in rows), strict=True)
    widest = [max(column, key=len) for column in cells]
    width = sum(width_em(rows[0].face, cell) + tracking_em * len(cell) for cell in widest)
    return width * 1.1 + COLUMN_GAP_EM * (len(widest) - 1)


def _widest(placed: list[_Placed], tracking_em: float) -> tuple[float, float]:
    """Width of the widest line, and of an average character in it, in em."""
    widest = max(placed, key=lambda item: _line_em(item, tracking_em))
    width = _line_em(widest, tracking_em)
    char = width / sum(len(part) + 1 for part in widest.line.parts)
    rows = [item for item in placed if item.line.table]
    if rows:
        width = max(width, _table_em(rows, tracking_em))
    return width, char


def _choose_faces(
    rng: np.random.Generator, lines: list[Line], table: FaceTable
) -> tuple[_Sheet, list[_Placed]]:
    """Fonts in which the longest line is not too narrow in the tile."""
    tracking = float(rng.uniform(-0.02, 0.1)) if rng.random() < 0.35 else 0.0
    own = {id(line): table.draw(rng) for line in lines if line.own_face}
    tries = 0
    while True:
        face = table.draw(rng)
        bold = table.bold(face)
        placed = [_Placed(line, own.get(id(line), bold if line.bold else face)) for line in lines]
        width, char_em = _widest(placed, tracking)
        tries += 1
        if width * LEAST_CHAR_PX <= (TILE_PX - 16) * char_em or tries == FACE_TRIES:
            break
        tracking = 0.0
    for item in placed:  # fonts differ in height: the ink of each must fit the common pitch
        if item.line.own_face:
            item.line.scale *= min(1.0, ink_height_em(face) / ink_height_em(item.face))
    ratio = float(rng.uniform(1.06, 1.5))
    hard = bool(rng.random() < 0.06)  # hard pixels, as thermal printers make them
    return _Sheet(face, hard, tracking, ratio), placed


def _choose_geometry(
    rng: np.random.Generator, content: Content, sheet: _Sheet, placed: list[_Placed]
) -> None:
    """Sizes in the tile first (`pitch`, and `em_x`, `em_y`: an em across and down), then in px."""
    margin_x, margin_y = (6.0, 6.0) if content.fill else rng.uniform(6, 24, size=2)
    width, char_em = _widest(placed, sheet.tracking_em)
    width *= 1.02  # hinted type may run a little wider
    units = sum(_units(item.line) for item in placed)
    mean_scale = sum(item.line.scale for item in placed) / len(placed)
    cap = (MAX_TAG_PITCH_PX if content.kind == "tag" else MAX_PITCH_PX) / mean_scale
    room = (TILE_PX - 2 * margin_y) / units
    pitch = min(cap, room)
    full = content.fill or rng.random() < (0.3 if content.kind == "words" else 0.5)
    if not full:
        low = min(pitch, max(MIN_PITCH_PX, 0.7 * pitch))
        pitch = float(np.exp(rng.uniform(np.log(low), np.log(pitch))))
    em_y = pitch / sheet.pitch_em()
    widest = min((TILE_PX - 2 * margin_x) / width, MAX_CHAR_PX / char_em)
    narrowest = min(widest, GOOD_CHAR_PX / char_em)
    aspect = float(np.exp(np.log(MOST_ASPECT) * rng.triangular(-1.0, 0.0, 1.0)))  # width / height
    em_x = widest if content.fill else min(widest, max(narrowest, em_y / aspect))
    most = MOST_ASPECT if rng.random() < 0.4 else 2.0
    if full and not content.fill and rng.random() < 0.5:
        em_x = min(widest, most * em_y)
    if not content.fill:
        em_y = max(min(MIN_PITCH_PX, room) / sheet.pitch_em(), min(em_y, most * em_x))
    em_y = min(em_y, MOST_ASPECT * em_x)
    em_x = min(em_x, MOST_ASPECT * em_y)
    if content.fill:
        pass
    elif units > LONG_LINES and rng.random() < UPRIGHT_SHARE:
        upright = float(rng.uniform(*UPRIGHT))
        em_x = max(em_x, min(widest, em_y / upright))
        em_y = min(em_y, upright * em_x)
    elif aspect > EXTREME_ASPECT:  # two tiles beside each other: half as wide may the print be
        em_x = max(narrowest / 2, min(em_x, em_y / aspect))
    elif aspect < 1 / EXTREME_ASPECT:
        em_y = max(min(MIN_PITCH_PX, room) / sheet.pitch_em() / 2, min(em_y, aspect * em_x))
    # Any scale at which the print is not too small and the sides are usual.
    low = max(MIN_FONT_PX, MIN_SIDE_PX * em_x / TILE_PX, MIN_SIDE_PX * em_y / TILE_PX)
    high = min(MAX_SIDE_PX * em_x, MAX_HEIGHT_PX * em_y) / TILE_PX
    high = min(high, 1.5 * float(np.sqrt(em_x * em_y)))
    sheet.font_px = usual_size(np.ceil(rng.uniform(low, max(low, high))))
    sheet.pitch_px = sheet.font_px * sheet.pitch_em()
    sheet.width_px = round(TILE_PX * sheet.font_px / em_x)
    sheet.height_px = round(TILE_PX * sheet.font_px / em_y)


def _measure(sheet: _Sheet, placed: list[_Placed]) -> None:
    """The real size and width of every line at its font's hinted size."""
    for item in placed:
        item.font_px = usual_size(sheet.font_px * item.line.scale)
        face = typeface(item.face.path, item.font_px, sheet.hard)
        tracking_px = sheet.tracking_em * item.font_px
        item.edges = [face.edges(part, tracking_px) for part in item.line.parts]
        item.width_px = sum(int(edges[-1]) for edges in item.edges)
        item.width_px += item.font_px * (len(item.edges) - 1)
    rows = [item for item in placed if item.line.table]
    if rows:
        cells = zip(*(item.edges for item in rows), strict=True)
        columns = [max(int(edges[-1]) for edges in column) for column in cells]
        gap = max(item.font_px for item in rows)
        for item in rows:
            item.columns_px = columns
            item.width_px = sum(columns) + gap * (len(columns) - 1)
    sheet.block_px = max(item.width_px for item in placed)


def _place(rng: np.random.Generator, sheet: _Sheet, placed: list[_Placed]) -> None:
    """Positions: a block of text somewhere on the page, its lines below one another."""
    margin = max(3, sheet.font_px // 4)
    sheet.width_px = max(sheet.width_px, sheet.block_px + 2 * margin)
    slack = sheet.width_px - sheet.block_px - 2 * margin
    if any(len(item.edges) > 1 for item in placed) and rng.random() < 0.8:  # columns spread
        wider = int(slack * rng.uniform(0.4, 1.0))
        sheet.block_px, slack = sheet.block_px + wider, slack - wider
    sheet.block_x_px = margin + int(slack * pick(rng, (0.5, 0.5, 0.0, float(rng.random()))))
    y = 0.0
    for item in placed:
        face = typeface(item.face.path, item.font_px, sheet.hard)
        ink_px = face.ascent_px + face.descent_px
        pitch = max(item.line.scale * sheet.pitch_px, ink_px + 1.0)
        band = 0.15 * sheet.pitch_px if item.line.inverted else 0.0
        item.top_px = round(y + band + (pitch - ink_px) / 2)
        item.bottom_px = item.top_px + ink_px
        item.baseline_px = item.top_px + face.ascent_px
        y += pitch + 2 * band + item.line.gap * sheet.pitch_px
        free = sheet.block_px - item.width_px
        share = {"left": 0.0, "center": 0.5, "right": 1.0}[item.line.align]
        item.x_px = sheet.block_x_px + int(0 if len(item.edges) > 1 else free * share)
    sheet.height_px = max(sheet.height_px, int(y) + 8)
    room = sheet.height_px - y - 8
    shift = 4 + int(room * pick(rng, (0.5, 0.5, 0.0, float(rng.random()))))
    for item in placed:
        item.top_px, item.bottom_px = item.top_px + shift, item.bottom_px + shift
        item.baseline_px += shift


def _ink(canvas: np.ndarray, item: _Placed, sheet: _Sheet) -> np.ndarray:
    """Draws a line; boxes of its characters and of the newline after it."""
    face = typeface(item.face.path, item.font_px, sheet.hard)
    if item.line.rule:
        y = item.bottom_px + max(2, int(0.3 * item.line.gap * sheet.pitch_px))
        canvas[y : y + 1, sheet.block_x_px : sheet.block_x_px + sheet.block_px] = 255
    text = item.line.text
    boxes = np.full((len(text) + 1, 4), np.nan, dtype=np.float32)
    starts_px = _part_starts(item, sheet)
    for part, edges, first, x in zip(
        item.line.parts, item.edges, item.line.starts(), starts_px, strict=True
    ):
        face.draw(canvas, part, edges + x, item.baseline_px)
        inked = np.flatnonzero([character != " " for character in part])
        boxes[first + inked, 0], boxes[first + inked, 2] = edges[inked] + x, edges[inked + 1] + x
        boxes[first + inked, 1], boxes[first + inked, 3] = item.top_px, item.bottom_px
    if item.line.inverted:
        pad = max(1, item.font_px // 10)
        left, right = item.x_px - 2 * pad, starts_px[-1] + int(item.edges[-1][-1]) + 2 * pad
        rows = slice(max(0, item.top_px - pad), item.bottom_px + pad)
        canvas[rows, max(0, left) : right] = 255 - canvas[rows, max(0, left) : right]
    return boxes


def _part_starts(item: _Placed, sheet: _Sheet) -> list[int]:
    """Left ends of the line's parts: one column after the other, or the second at the right."""
    table = item.line.table
    if table is None:
        ends = sheet.block_x_px + sheet.block_px
        return [item.x_px, *(ends - int(edges[-1]) for edges in item.edges[1:])]
    starts, x = [], float(item.x_px)
    gap = (sheet.block_px - sum(item.columns_px)) / max(1, len(item.columns_px) - 1)
    for edges, width, align in zip(item.edges, item.columns_px, table.aligns, strict=True):
        starts.append(round(x) + (width - int(edges[-1]) if align == "r" else 0))
        x += width + gap
    return starts


def _draw_grid(canvas: np.ndarray, sheet: _Sheet, placed: list[_Placed]) -> None:
    """Lines around the cells of a table that has them."""
    rows = [item for item in placed if item.line.table and item.line.table.grid]
    if not rows:
        return
    pad = max(1, (rows[1].top_px - rows[0].bottom_px) // 2 if len(rows) > 1 else 2)
    left = max(0, rows[0].x_px - sheet.font_px // 3)
    right = min(canvas.shape[1] - 1, rows[0].x_px + sheet.block_px + sheet.font_px // 3)
    edges = [max(0, rows[0].top_px - pad)]
    edges += [min(canvas.shape[0] - 1, item.bottom_px + pad) for item in rows]
    columns = rows[0].columns_px
    gap = (sheet.block_px - sum(columns)) / max(1, len(columns) - 1)
    bars = [left, right]
    for i in range(1, len(columns)):
        bars.append(round(rows[0].x_px + sum(columns[:i]) + gap * (i - 0.5)))
    canvas[edges, left : right + 1] = 255
    canvas[edges[0] : edges[-1] + 1, bars] = 255


def _frame(canvas: np.ndarray, placed: list[_Placed]) -> None:
    """A box around everything, where the margins are wide enough."""
    height, width = canvas.shape
    left = min(item.x_px for item in placed) // 2
    top, bottom = placed[0].top_px // 2, (placed[-1].bottom_px + height) // 2
    if left >= 3 and placed[0].top_px - top >= 4 and bottom - placed[-1].bottom_px >= 4:
        canvas[[top, bottom], left : width - left] = 255
        canvas[top : bottom + 1, [left, width - 1 - left]] = 255
