"""Renders a page of print with exact truth: its text and the box of every character.

A page is read as one tile of `TILE_PX` squared that the whole page is stretched to. So the
geometry is chosen there first (line pitch, width of a character), and the size of the page in
pixels follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from training import scans
from training.contents import Content, Line, build
from training.fonts import Face, faces
from training.typesetting import ink_height_em, typeface, width_em
from training.words import pick

TILE_PX = 448
MIN_PITCH_PX, MAX_PITCH_PX, MAX_TAG_PITCH_PX = 16.0, 40.0, 60.0
MIN_CHAR_PX, GOOD_CHAR_PX, MAX_CHAR_PX = 6.0, 7.2, 34.0
MIN_SIDE_PX, MAX_SIDE_PX, MIN_FONT_PX = 200, 900, 11
KIND_WEIGHTS = {  # kind: (weight up to 3 lines, up to 8, above)
    "receipt": (0.0, 0.14, 0.32),
    "label": (0.08, 0.14, 0.14),
    "tag": (0.16, 0.10, 0.06),
    "note": (0.16, 0.14, 0.14),
    "words": (0.44, 0.34, 0.24),
    "dense": (0.15, 0.13, 0.09),
    "blank": (0.01, 0.01, 0.01),
}


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered page and what stands on it.

    image: RGB. text: lines joined with newlines, printable ASCII, no double spaces.
    boxes: float32 (len(text), 4), x0 y0 x1 y1 in pixels of the page, NaN for spaces and newlines.
    facts: what can be asked about the page, values as printed (`number of items` is counted).
    """

    image: Image.Image
    text: str
    boxes: np.ndarray
    kind: str
    facts: dict[str, str]


@dataclass(slots=True)
class _Look:
    face: Face
    bold_face: Face
    pitch_ratio: float
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]


def make_page(
    rng: np.random.Generator,
    *,
    split: str,
    max_lines: int,
    dense: bool = False,
    scan: float = 0.0,
    kind: str | None = None,
) -> Page:
    """A random page of at most `max_lines` (1 to 25) lines; the same `rng` state, the same page.

    `split` (train, eval) chooses fonts, words and layouts. `scan` (0 to 1) is how likely and how
    strong the traces of scanning are. `dense` is short for kind="dense". Raises `ConfigError`
    when the fonts are not installed, ValueError for an unknown kind or a wrong `max_lines`.
    """
    if not 1 <= max_lines <= 25:
        raise ValueError(f"max_lines is {max_lines}, must be 1 to 25")
    kind = kind or ("dense" if dense else _pick_kind(rng, max_lines))
    if kind not in KIND_WEIGHTS:
        raise ValueError(f"there is no kind of page {kind!r}")
    look = _pick_look(rng, split)
    if kind == "blank":
        size = [int(side) for side in rng.integers(MIN_SIDE_PX, 700, size=2)]
        image, text, boxes, facts = (
            Image.new("RGB", (size[0], size[1]), look.paper),
            "",
            _no_boxes(0),
            {},
        )
    else:
        content = build(rng, kind, split, max_lines)
        image, text, boxes = _draw(rng, content, look, split)
        facts = content.facts
    image, boxes = scans.weather(rng, image, boxes, paper=look.paper, strength=scan)
    return Page(image=image, text=text, boxes=boxes, kind=kind, facts=facts)


def _pick_kind(rng: np.random.Generator, max_lines: int) -> str:
    column = 0 if max_lines <= 3 else 1 if max_lines <= 8 else 2
    weights = np.array([row[column] for row in KIND_WEIGHTS.values()])
    return list(KIND_WEIGHTS)[
        int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum()))
    ]


def _pick_face(rng: np.random.Generator, split: str) -> Face:
    options, sums = _face_table(split)
    return options[int(np.searchsorted(sums, rng.random() * sums[-1]))]


_TABLES: dict[str, tuple[list[Face], np.ndarray]] = {}


def _face_table(split: str) -> tuple[list[Face], np.ndarray]:
    if split not in _TABLES:
        found = faces(split)
        _TABLES[split] = (found, np.cumsum([face.weight for face in found]))
    return _TABLES[split]


def _bold_of(face: Face, split: str) -> Face:
    for other in _face_table(split)[0]:
        if other.family == face.family and other.style == "bold":
            return other
    return face


def _pick_look(rng: np.random.Generator, split: str) -> _Look:
    face = _pick_face(rng, split)
    paper = rng.integers(236, 256) - rng.integers(0, 14, size=3)
    if rng.random() < 0.15:  # tinted paper
        paper = rng.integers(175, 256, size=3)
    ink = np.full(3, rng.integers(0, 70)) + rng.integers(0, 12, size=3)
    if rng.random() < 0.2:  # coloured ink
        ink = rng.integers(0, 150, size=3)
    if abs(_luminance(paper) - _luminance(ink)) < 95:
        ink = ink // 4
    if rng.random() < 0.05:  # white on black
        paper, ink = ink, paper
    return _Look(
        face=face,
        bold_face=_bold_of(face, split),
        pitch_ratio=float(rng.uniform(1.04, 1.5)),
        ink=tuple(int(c) for c in ink),
        paper=tuple(int(c) for c in paper),
    )


def _luminance(colour: np.ndarray) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def _no_boxes(count: int) -> np.ndarray:
    return np.full((count, 4), np.nan, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Geometry:
    font_px: int
    pitch_px: float
    width_px: int
    height_px: int


def _choose_geometry(
    rng: np.random.Generator, content: Content, look: _Look, width: float, units: float
) -> _Geometry:
    """Sizes for text `width` em wide and `units` line pitches high."""
    margin_x, margin_y = rng.uniform(6, 24, size=2) if not content.fill else (6.0, 6.0)
    num_chars = max(len(line.text) * line.scale for line in content.lines)
    char_em = width / num_chars
    pitch_em = look.pitch_ratio * ink_height_em(look.face)
    cap = MAX_TAG_PITCH_PX if content.kind == "tag" else MAX_PITCH_PX
    pitch = min(cap, (TILE_PX - 2 * margin_y) / units)
    if not content.fill and rng.random() < 0.6:
        pitch = rng.uniform(min(pitch, max(MIN_PITCH_PX, 0.5 * pitch)), pitch)
    em_y = pitch / pitch_em
    widest = min((TILE_PX - 2 * margin_x) / width, MAX_CHAR_PX / char_em)
    narrowest = min(widest, GOOD_CHAR_PX / char_em)
    aspect = float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
    em_x = widest if content.fill else min(widest, max(narrowest, em_y / aspect))
    em_y = max(MIN_PITCH_PX / pitch_em, min(em_y, 2.0 * em_x)) if not content.fill else em_y
    em_y = min(em_y, 4.0 * em_x)
    em_x = min(em_x, 4.0 * em_y)
    # The page in pixels: any scale at which the print is not too small and the sides are usual.
    low = max(MIN_FONT_PX, MIN_SIDE_PX * em_x / TILE_PX)
    high = min(MAX_SIDE_PX * em_x / TILE_PX, MAX_SIDE_PX * 1.2 * em_y / TILE_PX)
    mode = 448 * np.sqrt(em_x * em_y) / TILE_PX
    high = max(low, min(high, 1.5 * mode))
    font_px = int(np.ceil(rng.uniform(low, high)))
    return _Geometry(
        font_px=font_px,
        pitch_px=font_px * pitch_em,
        width_px=round(TILE_PX * font_px / em_x),
        height_px=round(TILE_PX * font_px / em_y),
    )


@dataclass(slots=True)
class _Placed:
    line: Line
    face: Face
    left_px: int = 0
    right_px: int = 0  # where the right part starts
    top_px: int = 0
    baseline_px: int = 0
    bottom_px: int = 0
    font_px: int = 0
    width_px: int = 0


def _draw(
    rng: np.random.Generator, content: Content, look: _Look, split: str
) -> tuple[Image.Image, str, np.ndarray]:
    lines = content.lines
    tight = sum(line.scale * 1.02 + line.gap + 0.3 * line.inverted for line in lines) > 25.5
    placed = []
    for line in lines:
        if tight:
            line.scale, line.gap, line.rule = 1.0, 0.0, False
        line.scale = max(
            1.0 if line.scale >= 1 else line.scale, min(line.scale, 40 / len(line.text))
        )
        face = _pick_face(rng, split) if line.own_face else look.face
        if line.own_face:  # other fonts have other heights: keep the ink inside the pitch
            line.scale = min(
                line.scale, line.scale * ink_height_em(look.face) / ink_height_em(face)
            )
        placed.append(_Placed(line, look.bold_face if line.bold and not line.own_face else face))
    width = max(_line_em(item) for item in placed)
    units = sum(_units(item) for item in placed)
    geometry = _choose_geometry(rng, content, look, width, units)
    block_px = _measure(placed, geometry)
    width_px = max(geometry.width_px, block_px + 8)
    if any(item.line.right for item in placed):  # columns spread towards the edges
        room = width_px - 2 * max(4, width_px // 50) - block_px
        block_px += int(max(0, room) * rng.uniform(0.5, 1.0)) if rng.random() < 0.8 else 0
    height_px = max(
        geometry.height_px, round(sum(_units(i) for i in placed) * geometry.pitch_px) + 6
    )
    _place(rng, placed, geometry, block_px, width_px, height_px)
    image = Image.new("RGB", (width_px, height_px), look.paper)
    return image, *_print(rng, image, placed, look, block_px)


def _line_em(item: _Placed) -> float:
    width = width_em(item.face, item.line.text)
    return (width + (1.0 if item.line.right else 0.0)) * item.line.scale * 1.02


def _units(item: _Placed) -> float:
    return item.line.scale + item.line.gap + (0.3 if item.line.inverted else 0.0)


def _measure(placed: list[_Placed], geometry: _Geometry) -> int:
    """Sets the size and width of every line; returns the width of the widest, in px."""
    for item in placed:
        item.font_px = max(6, int(geometry.font_px * item.line.scale))
        face = typeface(item.face.path, item.font_px)
        item.width_px = int(np.ceil(face.edges(item.line.left)[-1]))
        if item.line.right:
            gap = max(item.font_px, 6)
            item.width_px += gap + int(np.ceil(face.edges(item.line.right)[-1]))
    return max(item.width_px for item in placed)


def _place(
    rng: np.random.Generator,
    placed: list[_Placed],
    geometry: _Geometry,
    block_px: int,
    width_px: int,
    height_px: int,
) -> None:
    """Positions of all lines: a block of text somewhere on the page, lines below one another."""
    used = sum(_units(item) for item in placed) * geometry.pitch_px
    slack_x, slack_y = max(0, width_px - block_px - 6), max(0.0, height_px - used - 4)
    x = 3 + int(slack_x * (0.5 if rng.random() < 0.6 else rng.random()))
    y = 2 + slack_y * pick(rng, (0.5, 0.5, 0.1, float(rng.random())))
    for item in placed:
        face = typeface(item.face.path, item.font_px)
        pitch = item.line.scale * geometry.pitch_px
        y += 0.15 * item.line.inverted * geometry.pitch_px
        ink_px = face.ascent_px + face.descent_px
        item.baseline_px = round(y + max(0.0, pitch - ink_px) / 2) + face.ascent_px
        item.top_px, item.bottom_px = (
            item.baseline_px - face.ascent_px,
            item.baseline_px + face.descent_px,
        )
        y += pitch + (item.line.gap + 0.15 * item.line.inverted) * geometry.pitch_px
        free = block_px - item.width_px
        shift = (
            0 if item.line.right else {"left": 0.0, "center": 0.5, "right": 1.0}[item.line.align]
        )
        item.left_px = x + int(free * shift)
        if item.line.right:
            length = int(np.ceil(face.edges(item.line.right)[-1]))
            item.right_px = x + block_px - length


def _print(
    rng: np.random.Generator, image: Image.Image, placed: list[_Placed], look: _Look, block_px: int
) -> tuple[str, np.ndarray]:
    """Draws the lines into `image`; returns the text and the boxes."""
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.06:
        draw.fontmode = "1"  # hard pixels, as thermal printers make them
    if rng.random() < 0.12:
        _frame(draw, image, placed, look)
    boxes: list[np.ndarray] = []
    for item in placed:
        face = typeface(item.face.path, item.font_px)
        ink = look.ink
        if item.line.inverted:
            draw.rectangle(_band(image, item, block_px), fill=look.ink)
            ink = look.paper
        if item.line.rule:
            y = item.bottom_px + max(2, item.font_px // 5)
            draw.line(
                (item.left_px, y, min(image.width - 3, item.left_px + block_px), y), look.ink, 1
            )
        parts = [(item.left_px, item.line.left)]
        if item.line.right:
            parts.append((item.right_px, item.line.right))
        for x, text in parts:
            draw.text((x, item.baseline_px), text, ink, face.font, anchor="ls")
            edges = x + face.edges(text)
            part = np.empty((len(text) + 1, 4), dtype=np.float32)
            part[:-1, 0], part[:-1, 2] = edges[:-1], edges[1:]
            part[:, 1], part[:, 3] = item.top_px, item.bottom_px
            part[[i for i, c in enumerate(text) if c == " "]] = np.nan
            part[-1] = np.nan  # the space before the right part, or the newline
            boxes.append(part)
    text = "\n".join(item.line.text for item in placed)
    return text, np.concatenate(boxes)[:-1]


def _band(image: Image.Image, item: _Placed, block_px: int) -> tuple[int, int, int, int]:
    pad = max(1, item.font_px // 12)
    left, right = item.left_px - 2 * pad, item.left_px + item.width_px + 2 * pad
    if item.line.right:
        right = item.left_px + block_px + 2 * pad
    return max(0, left), item.top_px - pad, min(image.width - 1, right), item.bottom_px + pad


def _frame(
    draw: ImageDraw.ImageDraw, image: Image.Image, placed: list[_Placed], look: _Look
) -> None:
    """A box around everything, where the margins are wide enough."""
    left = min(item.left_px for item in placed) // 2
    top, bottom = placed[0].top_px // 2, (placed[-1].bottom_px + image.height) // 2
    if left >= 3 and placed[0].top_px - top >= 3 and bottom - placed[-1].bottom_px >= 3:
        draw.rectangle((left, top, image.width - 1 - left, bottom), outline=look.ink, width=1)
