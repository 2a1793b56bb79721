"""What each page of real files costs: its tiles, tokens, cache and seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ivl.config import ModelConfig
from ivl.footprint.workload import PageSize
from ivl.kv import kv_bytes_per_token
from ivl.planner.plan import Plan
from ivl.planner.speed import Estimate, estimate_speed
from ivl.prompt.tiles import choose_grid, num_tiles_with_thumbnail


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCost:
    """`kv_bytes`: keys and values of the page's tokens; `first_token_s`: from image to answer."""

    title: str
    size_px: tuple[int, int]
    grid: tuple[int, int]
    num_tiles: int
    num_tokens: int
    kv_bytes: int
    first_token_s: Estimate


def page_sizes(files: Sequence[str | os.PathLike[str]]) -> list[PageSize]:
    """All pages of images and PDFs; RequestError for what is neither, or damaged."""
    if not files:
        return []
    from ivl.pages.reader import open_pages  # loads Pillow, which plans without files never need

    return [
        PageSize(title=page.title, size_px=page.size_px())
        for file in files
        for page in open_pages(file)
    ]


def tiles_of(page: PageSize, config: ModelConfig, max_tiles: int) -> int:
    """Tiles that the model sees of a page, a thumbnail counted."""
    grid = choose_grid(page.size_px, config, max_tiles)
    return num_tiles_with_thumbnail(grid, config.use_thumbnail)


def page_costs(plan: Plan, pages: Sequence[PageSize]) -> list[PageCost]:
    """Each page as a question of its own."""
    config, work = plan.subject.config, plan.setting.work
    found = []
    for page in pages:
        grid = choose_grid(page.size_px, config, work.max_tiles)
        num_tiles = num_tiles_with_thumbnail(grid, config.use_thumbnail)
        alone = replace(work, tiles=(num_tiles,))
        tokens = alone.prompt_tokens(config)
        speed = estimate_speed(config, plan.placement, alone, plan.machine)
        found.append(
            PageCost(
                title=page.title,
                size_px=page.size_px,
                grid=(grid.columns, grid.rows),
                num_tiles=num_tiles,
                num_tokens=tokens,
                kv_bytes=tokens * kv_bytes_per_token(config.decoder, work.kv),
                first_token_s=speed.first_token_s,
            )
        )
    return found
