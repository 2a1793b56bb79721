import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ivl.prompt.tiles import Grid, cut_tiles, tile_grid


def noise(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def official_tiles(image, columns, rows, tile_px):
    """The tiles as plain Pillow makes them, in the official order, with a thumbnail."""
    large = image.resize((columns * tile_px, rows * tile_px))
    boxes = [
        (x * tile_px, y * tile_px, (x + 1) * tile_px, (y + 1) * tile_px)
        for y in range(rows)
        for x in range(columns)
    ]
    tiles = [large.crop(box) for box in boxes]
    if len(tiles) > 1:
        tiles.append(image.resize((tile_px, tile_px)))
    return np.stack([np.asarray(tile) for tile in tiles])


@pytest.mark.parametrize(
    ("size", "grid"),
    [((640, 480), (4, 3)), ((300, 900), (1, 3)), ((448, 448), (1, 1)), ((1, 1), (1, 1))],
)
def test_tiles_are_byte_equal_to_the_official_path(size, grid):
    image = Image.fromarray(noise(*size))
    assert tile_grid(*size) == grid
    tiles = cut_tiles(image, Grid(*grid))
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, official_tiles(image, *grid, 448))


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    columns=st.integers(1, 4),
    rows=st.integers(1, 4),
    tile_px=st.sampled_from([28, 56, 224]),
)
def test_any_grid_and_tile_size_is_cut_as_pillow_would(width, height, columns, rows, tile_px):
    image = Image.fromarray(noise(width, height))
    tiles = cut_tiles(image, Grid(columns, rows), tile_px=tile_px)
    np.testing.assert_array_equal(tiles, official_tiles(image, columns, rows, tile_px))


def test_a_thumbnail_follows_unless_it_is_not_wanted():
    image = Image.fromarray(noise(640, 480))
    assert cut_tiles(image, Grid(1, 1)).shape == (1, 448, 448, 3)
    with_thumbnail = cut_tiles(image, Grid(3, 2), tile_px=56)
    assert with_thumbnail.shape == (7, 56, 56, 3)
    without = cut_tiles(image, Grid(3, 2), tile_px=56, use_thumbnail=False)
    np.testing.assert_array_equal(without, with_thumbnail[:-1])


@pytest.mark.parametrize("size", [(30000, 10), (10, 30000)])
def test_extreme_shapes_work(size):
    image = Image.new("RGB", size, (9, 99, 199))
    tiles = cut_tiles(image, tile_grid(*size))
    assert tiles.shape == (13, 448, 448, 3)
    assert (tiles == (9, 99, 199)).all()
