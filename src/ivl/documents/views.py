"""How pages are seen: into how many tiles each is cut, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ivl.engine.prompt_builder import LIMIT_OPTION, MaxTiles
from ivl.pages.reader import ImageSource, Page, open_together
from ivl.pages.sources import DEFAULT_MAX_PIXELS, page_label
from ivl.prompt.tiles import Grid, choose_grids, num_tiles_with_thumbnail

if TYPE_CHECKING:
    from ivl.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """Page `number`, from 1, of the `count` pages of `path`, as a model sees it: of (width,
    height), cut into a grid of tiles. `num_tiles` counts the thumbnail too."""

    path: str
    number: int
    count: int
    size_px: tuple[int, int]
    grid: Grid
    num_tiles: int

    @property
    def title(self) -> str:
        """For people; the number is left out where there is one page."""
        return page_label(self.path, self.number, self.count)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "file": self.path,
            **({"page": self.number, "pages": self.count} if self.count > 1 else {}),
            "width": self.size_px[0],
            "height": self.size_px[1],
            "grid": {"columns": self.grid.columns, "rows": self.grid.rows},
            "tiles": self.num_tiles,
        }


def view_pages(
    pages: Sequence[Page],
    sizes_px: Sequence[tuple[int, int]],
    config: ModelConfig,
    max_tiles: MaxTiles = None,
) -> list[PageView]:
    """How pages of (width, height) that are shown together are cut."""
    grids = choose_grids(sizes_px, config, max_tiles) if pages else []
    return [
        PageView(
            path=page.name,
            number=page.number,
            count=page.count,
            size_px=size_px,
            grid=grid,
            num_tiles=num_tiles_with_thumbnail(grid, config.use_thumbnail),
        )
        for page, size_px, grid in zip(pages, sizes_px, grids, strict=True)
    ]


def open_shown(
    source: ImageSource, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[Page]:
    """The pages of a file that is asked about with all of them. Errors as in `open_together`, and
    those that are found only by decoding an image, or by measuring the pages of a PDF."""
    pages = open_together(source, name, max_pixels=max_pixels, limit_option=LIMIT_OPTION)
    if len(pages) == 1:
        image = pages[0].load(max_pixels=max_pixels, limit_option=LIMIT_OPTION)
        return [replace(pages[0], source=image)]
    for page in pages:
        page.size_px(max_pixels=max_pixels)
    return pages
