"""Renders the pages that the package carries for `ivl check --against`, each with its truth.

`python -m training.check_pages` writes them to `src/ivl/assets/pages`. Like `samples/` they come
from the evaluation's side of the split and are not among the pages of `training.evaluate`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.evaluate import KINDS, SEED
from training.pages import make_page

FOLDER = Path(__file__).parents[1] / "src" / "ivl" / "assets" / "pages"
NUM_PAGES = 8
MAX_LINES = 9


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for number in range(NUM_PAGES):
        kind = KINDS[number % len(KINDS)]
        rng = np.random.default_rng([SEED + 2, number])
        lines = 4 if kind == "tag" else MAX_LINES
        page = make_page(rng, split="eval", max_lines=lines, kind=kind, fonts="common")
        name = f"{kind}_{1 + number // len(KINDS)}"
        # Clean print has few colours, and a palette halves the file without changing any.
        colours = page.image.getcolors(256)
        image = page.image if colours is None else page.image.quantize(len(colours))
        same = image.convert("RGB").tobytes() == page.image.tobytes()
        (image if same else page.image).save(FOLDER / f"{name}.png", optimize=True)
        (FOLDER / f"{name}.txt").write_text(page.text + "\n", encoding="utf-8")
        print(f"{name}.png {page.image.size}, {len(page.text)} characters")


if __name__ == "__main__":
    main()
