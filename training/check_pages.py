"""Renders the pages that the package carries for `ivl check --against`, each with its truth.

`python -m training.check_pages` writes them to `src/ivl/assets/pages`. Like `samples/` they come
from the evaluation's side of the split and are not among the pages of `training.evaluate`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training.evaluate import KINDS, SEED
from training.pages import Page, make_page

FOLDER = Path(__file__).parents[1] / "src" / "ivl" / "assets" / "pages"
NUM_PAGES = 8
MAX_LINES = 9


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for number in range(NUM_PAGES):
        kind = KINDS[number % len(KINDS)]
        page = clean_page(kind, number)
        name = f"{kind}_{1 + number // len(KINDS)}"
        # A palette of all its colours halves the file and changes no pixel.
        image = page.image.quantize(256, dither=Image.Dither.NONE)
        assert image.convert("RGB").tobytes() == page.image.tobytes()
        image.save(FOLDER / f"{name}.png", optimize=True)
        (FOLDER / f"{name}.txt").write_text(page.text + "\n", encoding="utf-8")
        print(f"{name}.png {page.image.size}, {len(page.text)} characters")


def clean_page(kind: str, number: int) -> Page:
    """The first of its kind that is printed in few colours, and so makes a small file."""
    lines = 4 if kind == "tag" else MAX_LINES
    for attempt in range(100):
        rng = np.random.default_rng([SEED + 2, number, attempt])
        page = make_page(rng, split="eval", max_lines=lines, kind=kind, fonts="common")
        if page.image.getcolors(256) is not None:
            return page
    raise AssertionError(f"no page of the kind {kind} has few colours")


if __name__ == "__main__":
    main()
