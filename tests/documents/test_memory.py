"""A long run takes no more memory than a short one.

IVL_PAGES=2000 pytest tests/documents/test_memory.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import ivl

NUM_PAGES = int(os.environ.get("IVL_PAGES", "300"))
FIRST = 150
"""Until then the store of keys and values is used for the first time, block by block."""
PAGES_OF_A_FILE = 50
MOST_GROWTH_MB = 8


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts as Linux does")
def test_memory_does_not_grow_with_the_pages(tiny_model_dir: Path, tmp_path: Path) -> None:
    for start in range(0, NUM_PAGES, PAGES_OF_A_FILE):
        pages = []
        for number in range(start, start + PAGES_OF_A_FILE):
            image = Image.new("L", (80, 56), 255)
            ImageDraw.Draw(image).text((9, 9), f"No. {number}", fill=0)
            pages.append(image)
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        pages[0].save(folder / f"{start:05}.tif", save_all=True, append_images=pages[1:])
    model = ivl.load(tiny_model_dir)
    seen: dict[int, float] = {}

    def note(progress: ivl.ReadProgress) -> None:
        seen[progress.num_done] = resident_mb()

    documents = ivl.read_documents(
        tmp_path / "in",
        model=model,
        out=tmp_path / "pages.jsonl",
        max_tiles=1,
        max_tokens=1,
        rotate=False,
        progress=note,
    )
    assert sum(len(document.pages) for document in documents) == NUM_PAGES
    later = [seen[number] for number in range(NUM_PAGES - PAGES_OF_A_FILE, NUM_PAGES + 1)]
    assert min(later) - max(seen[number] for number in range(1, FIRST + 1)) < MOST_GROWTH_MB
