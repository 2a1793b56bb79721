"""Which grid of square tiles an image is cut into, and the pixels of its tiles.

The choice is that of InternVL's `dynamic_preprocess` and `find_closest_aspect_ratio`
(`internvl_chat/internvl/train/dataset.py`), and so are the pixels, byte for byte. Models were
trained on it, so another grid, even a sensible one, costs accuracy on text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from ivl.config import ModelConfig
from ivl.errors import ConfigError, RequestError

if TYPE_CHECKING:  # grids are planned without them, for `ivl plan` is to answer at once
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

# 1024 tiles are 262,144 image tokens, eight times the context of any model of the family.
LARGEST_MAX_TILES = 1024


class Grid(NamedTuple):
    """Tiles across and tiles down."""

    columns: int
    rows: int

    @property
    def num_tiles(self) -> int:
        """Tiles of the grid, without a thumbnail."""
        return self.columns * self.rows


def tile_grid(
    width: int, height: int, *, max_tiles: int = 12, min_tiles: int = 1, tile_px: int = 448
) -> Grid:
    """The grid for an image of `width` x `height` pixels, exactly as the official code has it.

    The aspect ratio decides. Of grids that are equally near, a later one (they are scanned by
    their number of tiles) replaces an earlier one when the image has more than half the pixels
    of that grid.

    Raises RequestError for an image without pixels and ConfigError for limits that no grid meets.
    """
    for side in (width, height):
        if isinstance(side, bool) or not isinstance(side, Real):
            raise RequestError(f"a side of an image is {side!r}", "give its pixels as numbers")
    if width < 1 or height < 1:
        raise RequestError(
            f"an image of {width} x {height} pixels has nothing to show",
            "both sides must be at least 1 pixel",
        )
    if tile_px < 1:
        raise ConfigError(f"tile_px is {tile_px}", "a tile is at least 1 pixel wide")
    check_max_tiles(max_tiles)
    if not 1 <= min_tiles <= max_tiles:
        raise ConfigError(
            f"`min_tiles` is {min_tiles} and `max_tiles` is {max_tiles}",
            "`min_tiles` must be at least 1 and at most `max_tiles`",
        )
    aspect_ratio = width / height
    nearest, smallest_distance = Grid(1, 1), float("inf")
    for columns, rows in _candidates(min_tiles, max_tiles):
        distance = abs(aspect_ratio - columns / rows)
        fills_half = width * height > 0.5 * tile_px * tile_px * columns * rows
        if distance < smallest_distance or (distance == smallest_distance and fills_half):
            nearest, smallest_distance = Grid(columns, rows), distance
    return nearest


def choose_grid(size_px: tuple[int, int], config: ModelConfig, max_tiles: int) -> Grid:
    """The grid that a model cuts an image of (width, height) into, with a limit of its own."""
    return tile_grid(
        *size_px,
        max_tiles=max_tiles,
        min_tiles=min(config.min_tiles, max_tiles),
        tile_px=config.tile_px,
    )


def choose_grids(
    sizes_px: Sequence[tuple[int, int]],
    config: ModelConfig,
    max_tiles: int | Sequence[int] | None = None,
) -> list[Grid]:
    """The grids of images of (width, height) that are sent together. `max_tiles` is a budget that
    they share, or one limit for each; None is the model's own."""
    limits = share_budget(len(sizes_px), config.max_tiles if max_tiles is None else max_tiles)
    return [choose_grid(size, config, limit) for size, limit in zip(sizes_px, limits, strict=True)]


def num_tiles_with_thumbnail(grid: Grid, use_thumbnail: bool = True) -> int:
    """Tiles that the vision tower sees: a thumbnail joins a grid of more than one tile."""
    return grid.num_tiles + (1 if use_thumbnail and grid.num_tiles > 1 else 0)


def share_budget(num_images: int, max_tiles: int | Sequence[int]) -> list[int]:
    """The limit of tiles for each of `num_images` images.

    A single number is shared equally, at least one tile each, as in the official evaluation and
    demo (`eval/mantis_eval`, `streamlit_demo/model_worker.py`); a thumbnail is not counted. A
    sequence gives each image its own limit.
    Raises ConfigError for a limit that is no positive number, RequestError when the sequence is
    not as long as the images are many.
    """
    if num_images < 0:
        raise RequestError(f"{num_images} images cannot share tiles", "give 0 or more images")
    if isinstance(max_tiles, str) or not isinstance(max_tiles, Sequence):
        check_max_tiles(max_tiles)
        return [max(1, int(max_tiles) // num_images)] * num_images if num_images else []
    limits = list(max_tiles)
    if len(limits) != num_images:
        raise RequestError(
            f"{len(limits)} tile limits were given for {num_images} images",
            "give one number for all images, or one for each",
        )
    for limit in limits:
        check_max_tiles(limit)
    return limits


def check_max_tiles(max_tiles: object) -> None:
    """Raise ConfigError unless `max_tiles` is a number of tiles that an image can have."""
    is_whole = isinstance(max_tiles, Integral) and not isinstance(max_tiles, bool)
    if not is_whole or int(cast("int", max_tiles)) not in range(1, LARGEST_MAX_TILES + 1):
        raise ConfigError(
            f"`max_tiles` is {max_tiles!r}",
            f"use a number from 1 to {LARGEST_MAX_TILES}; 12 is usual",
        )


@lru_cache(maxsize=64)
def _candidates(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) within the limits, by number of tiles.

    Grids of one number of tiles stay in the order of a Python set, filled as the official code
    fills it. With `min_tiles` 1 that order never matters; above 1 it settles exact ties.
    """
    grids = {
        (columns, rows)
        for side in range(min_tiles, max_tiles + 1)
        for columns in range(1, side + 1)
        for rows in range(1, min(side, max_tiles // columns) + 1)
        if columns * rows >= min_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


# Mean and standard deviation of R, G and B in 0..1, with which the towers were trained.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def cut_tiles(
    image: Image.Image, grid: Grid, *, tile_px: int = 448, use_thumbnail: bool = True
) -> NDArray[np.uint8]:
    """The tiles of an RGB image: uint8 (n, tile_px, tile_px, 3), row by row, then the thumbnail.

    The image is stretched (bicubic) to the grid. A thumbnail of the whole follows a grid of more
    than one tile. Only the stretched image and the result are held beside the image itself.
    """
    import numpy as np
    from PIL import Image

    num_tiles = num_tiles_with_thumbnail(grid, use_thumbnail)
    tiles = np.empty((num_tiles, tile_px, tile_px, 3), dtype=np.uint8)
    stretched = image.resize(
        (grid.columns * tile_px, grid.rows * tile_px), Image.Resampling.BICUBIC
    )
    for index in range(grid.num_tiles):
        row, column = divmod(index, grid.columns)
        left, top = column * tile_px, row * tile_px
        tiles[index] = np.asarray(stretched.crop((left, top, left + tile_px, top + tile_px)))
    if num_tiles > grid.num_tiles:
        tiles[-1] = np.asarray(image.resize((tile_px, tile_px), Image.Resampling.BICUBIC))
    return tiles
