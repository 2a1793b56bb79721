"""Renders the pages in `samples/`, each with its truth beside it: `python -m training.samples`.

They come from the evaluation's side of the split: fonts, words and layouts that training never saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from training.evaluate import SEED
from training.pages import Page, make_page

# kind, number of the page, most lines
SAMPLES = (
    ("receipt", 2, 12),
    ("label", 8, 9),
    ("tag", 10, 5),
    ("note", 3, 8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("samples"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    for kind, number, max_lines in SAMPLES:
        page = sample_page(kind, number, max_lines)
        page.image.save(args.out / f"{kind}.png", optimize=True)
        (args.out / f"{kind}.txt").write_text(page.text + "\n", encoding="utf-8")
        print(f"{args.out / kind}.png {page.image.size}\n{page.text}\n")


def sample_page(kind: str, number: int, max_lines: int) -> Page:
    """A page for `samples/`, which the evaluation does not contain."""
    rng = np.random.default_rng([SEED + 1, number])
    return make_page(rng, split="eval", max_lines=max_lines, kind=kind)


if __name__ == "__main__":
    main()
