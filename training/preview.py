"""Contact sheets of training pages, to look at: `python -m training.preview OUT.png --seed 1`."""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image, ImageDraw

from training.pages import Page, make_page
from training.printing import TILE_PX


def contact_sheet(pages: list[Page], *, columns: int, boxes: bool, stretch: bool) -> Image.Image:
    """Pages side by side in cells of the tile's size, stretched to it or fitted into it."""
    cell = TILE_PX + 8
    rows = -(-len(pages) // columns)
    sheet = Image.new("RGB", (cell * columns, cell * rows), (90, 90, 120))
    for index, page in enumerate(pages):
        image = page.image
        if boxes:
            image = image.copy()
            draw = ImageDraw.Draw(image)
            for x0, y0, x1, y1 in page.boxes[~np.isnan(page.boxes[:, 0])]:
                draw.rectangle((x0, y0, x1, y1), outline=(255, 0, 0))
        fit = min(TILE_PX / image.width, TILE_PX / image.height)
        size = (max(1, round(image.width * fit)), max(1, round(image.height * fit)))
        size = (TILE_PX, TILE_PX) if stretch else size
        corner = (index % columns * cell + 4, index // columns * cell + 4)
        sheet.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--split", choices=("train", "eval"), default="train")
    parser.add_argument("--scan", type=float, default=0.0)
    parser.add_argument("--max-lines", type=int, default=25)
    parser.add_argument("--kind")
    parser.add_argument("--boxes", action="store_true", help="draw the box of every character")
    parser.add_argument("--fit", action="store_true", help="keep the page's shape in its cell")
    args = parser.parse_args()
    pages = [
        make_page(
            np.random.default_rng((args.seed, index)),
            split=args.split,
            max_lines=args.max_lines,
            scan=args.scan,
            kind=args.kind,
        )
        for index in range(args.count)
    ]
    contact_sheet(pages, columns=args.columns, boxes=args.boxes, stretch=not args.fit).save(
        args.out
    )
    for index, page in enumerate(pages):
        first = page.text.split("\n")[0]
        print(f"{index}: {page.kind} {page.image.size} {len(page.text)} characters: {first!r}")


if __name__ == "__main__":
    main()
