"""Pages of print with exact truth: the text, the box of every character, and facts to ask for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training import scans
from training.contents import build
from training.printing import MIN_SIDE_PX, FaceTable, print_page

MAX_LINES = 25
MIN_CONTRAST = 95.0
KIND_WEIGHTS = {  # kind: (weight up to 3 lines, up to 8, above)
    "receipt": (0.0, 0.20, 0.28),
    "invoice": (0.0, 0.06, 0.14),
    "letter": (0.0, 0.04, 0.08),
    "table": (0.04, 0.08, 0.08),
    "label": (0.08, 0.12, 0.10),
    "tag": (0.16, 0.10, 0.04),
    "note": (0.16, 0.12, 0.08),
    "words": (0.42, 0.18, 0.14),
    "dense": (0.13, 0.09, 0.05),
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


def make_page(
    rng: np.random.Generator,
    *,
    split: str,
    max_lines: int,
    dense: bool = False,
    scan: float = 0.0,
    kind: str | None = None,
    fonts: str | None = None,
) -> Page:
    """A random page of at most `max_lines` (1 to 25) lines; the same `rng` state, the same page.

    `split` (train, eval) chooses words, layouts and, unless `fonts` (train, eval, common) does, the
    fonts. `scan` (0 to 1) is how likely and how
    strong the traces of scanning are. `dense` is short for kind="dense". Raises `ConfigError`
    when the fonts are not installed, ValueError for an unknown kind or a wrong `max_lines`.
    """
    if not 1 <= max_lines <= MAX_LINES:
        raise ValueError(f"max_lines is {max_lines}, must be 1 to {MAX_LINES}")
    kind = kind or ("dense" if dense else _pick_kind(rng, max_lines))
    if kind not in KIND_WEIGHTS:
        raise ValueError(f"there is no kind of page {kind!r}")
    ink, paper = _pick_colours(rng)
    if kind == "blank":
        height, width = (int(side) for side in rng.integers(MIN_SIDE_PX, 700, size=2))
        coverage, text, facts = np.zeros((height, width), dtype=np.uint8), "", {}
        boxes = np.zeros((0, 4), dtype=np.float32)
    else:
        content = build(rng, kind, split, max_lines)
        coverage, text, boxes = print_page(rng, content, _face_table(fonts or split))
        facts = content.facts
    printed, boxes = scans.distort(rng, Image.fromarray(coverage), boxes, strength=scan)
    image = scans.soil(rng, _colourise(printed, ink, paper), strength=scan)
    return Page(image=image, text=text, boxes=boxes, kind=kind, facts=facts)


@functools.cache
def _face_table(fonts: str) -> FaceTable:
    return FaceTable(fonts)


def _pick_kind(rng: np.random.Generator, max_lines: int) -> str:
    column = 0 if max_lines <= 3 else 1 if max_lines <= 8 else 2
    sums = np.cumsum([weights[column] for weights in KIND_WEIGHTS.values()])
    return list(KIND_WEIGHTS)[int(np.searchsorted(sums, rng.random() * sums[-1]))]


def _pick_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ink and paper, int64 (3,) each, far enough apart to read."""
    paper = rng.integers(236, 256) - rng.integers(0, 14, size=3)
    if rng.random() < 0.15:  # tinted paper
        paper = rng.integers(175, 256, size=3)
    ink = np.full(3, rng.integers(0, 70)) + rng.integers(0, 12, size=3)
    if rng.random() < 0.2:  # coloured ink
        ink = rng.integers(0, 150, size=3)
    if float(np.dot(paper - ink, (0.299, 0.587, 0.114))) < MIN_CONTRAST:
        ink = ink // 4
    return (paper, ink) if rng.random() < 0.05 else (ink, paper)  # now and then white on black


def _colourise(coverage: Image.Image, ink: np.ndarray, paper: np.ndarray) -> Image.Image:
    shares = np.arange(256) / 255
    bands = [
        coverage.point(
            np.rint(paper[band] + (ink[band] - paper[band]) * shares).astype(int).tolist()
        )
        for band in range(3)
    ]
    return Image.merge("RGB", bands)
