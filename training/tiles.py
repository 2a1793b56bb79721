"""Where a page's characters are in its tiles: what each patch and each letter should find."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ivl.prompt.tiles import Grid, cut_tiles, tile_grid
from training.demo_config import MAX_TILES, PATCH_PX, TILE_PX
from training.pages import Page

GRID = TILE_PX // PATCH_PX
SIDE = GRID // 2
"""Image tokens of a tile in a row, and rows of them; they are two patches wide and high."""
PARTS_PER_PATCH = 3
"""Each patch names the characters at so many places side by side."""


def page_grid(page: Page) -> Grid:
    return tile_grid(*page.image.size, max_tiles=MAX_TILES, tile_px=TILE_PX)


def page_tiles(page: Page) -> np.ndarray:
    """uint8 (tiles, px, px, 3), by the package's own preprocessing."""
    return cut_tiles(page.image, page_grid(page), tile_px=TILE_PX, use_thumbnail=False)


def stretched_boxes(page: Page) -> np.ndarray:
    """The page's boxes in pixels of the grid of tiles that it is stretched to."""
    grid = page_grid(page)
    size = np.array([page.image.width, page.image.height] * 2, np.float32)
    return page.boxes * (np.array([grid.columns, grid.rows] * 2, np.float32) * TILE_PX / size)


def patch_labels(text: str, boxes: np.ndarray, grid: Grid) -> Tensor:
    """Which character covers each place of each patch: int64 (tiles, GRID * GRID,
    PARTS_PER_PATCH).

    A place is a point at half the height of the patch; 0 where no character's box covers it.
    """
    labels = np.zeros((grid.rows * GRID, grid.columns * GRID * PARTS_PER_PATCH), np.int64)
    part_px = PATCH_PX / PARTS_PER_PATCH
    first_row = np.ceil(boxes[:, 1] / PATCH_PX - 0.5)
    last_row = np.floor(boxes[:, 3] / PATCH_PX - 0.5)
    first_part = np.ceil(boxes[:, 0] / part_px - 0.5)
    last_part = np.floor(boxes[:, 2] / part_px - 0.5)
    for i, character in enumerate(text):
        if np.isnan(boxes[i, 0]):
            continue
        r0, r1 = max(0, int(first_row[i])), int(last_row[i]) + 1
        c0, c1 = max(0, int(first_part[i])), int(last_part[i]) + 1
        labels[r0:r1, c0:c1] = ord(character) - 32
    tiles = torch.from_numpy(labels).view(grid.rows, GRID, grid.columns, GRID, PARTS_PER_PATCH)
    return tiles.transpose(1, 2).reshape(grid.num_tiles, GRID * GRID, PARTS_PER_PATCH)


def printed_patches(boxes: np.ndarray, grid: Grid) -> Tensor:
    """1 where a character's box touches a patch: float (tiles, GRID * GRID)."""
    printed = np.zeros((grid.rows * GRID, grid.columns * GRID), np.float32)
    for x0, y0, x1, y1 in boxes[~np.isnan(boxes[:, 0])] / PATCH_PX:
        printed[max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = 1
    tiles = torch.from_numpy(printed).view(grid.rows, GRID, grid.columns, GRID)
    return tiles.transpose(1, 2).reshape(grid.num_tiles, GRID * GRID)


def token_places(boxes: np.ndarray, grid: Grid) -> np.ndarray:
    """Which image token is under each character: int64 (characters,), -1 under spaces."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    token_px = 2 * PATCH_PX
    x = np.clip((boxes[:, 0] + boxes[:, 2]) / 2 // token_px, 0, grid.columns * SIDE - 1)
    y = np.clip((boxes[:, 1] + boxes[:, 3]) / 2 // token_px, 0, grid.rows * SIDE - 1)
    tile = y // SIDE * grid.columns + x // SIDE
    token = tile * SIDE * SIDE + y % SIDE * SIDE + x % SIDE
    return np.nan_to_num(token, nan=-1).astype(np.int64)
