"""From an image to the pixels of its tiles, as InternVL's `dynamic_preprocess` cuts them, byte for
byte."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivl.prompt.tiles import Grid, num_tiles_with_thumbnail

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
