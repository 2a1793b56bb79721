import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivl.errors import ConfigError, RequestError
from ivl.prompt.tiles import (
    LARGEST_MAX_TILES,
    Grid,
    num_tiles_with_thumbnail,
    share_budget,
    tile_grid,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "tile_grids.csv"


def test_every_golden_row_of_the_official_code_agrees():
    with GOLDEN.open() as file:
        rows = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 6000
    for row in rows:
        grid = tile_grid(row["width"], row["height"], max_tiles=row["max_tiles"])
        assert grid == (row["columns"], row["rows"]), row
        assert num_tiles_with_thumbnail(grid) == row["tiles_with_thumbnail"], row


@pytest.mark.parametrize(
    ("size", "grid"), [((1240, 1754), (2, 3)), ((640, 480), (4, 3)), ((30000, 10), (12, 1))]
)
def test_sizes_that_people_meet(size, grid):
    assert tile_grid(*size) == grid


def test_a_tie_goes_to_more_tiles_only_when_the_image_fills_half_of_them():
    # 2x2 = 4 tiles of 448 px: half of them is 401,408 pixels, and 633^2 is 400,689.
    assert tile_grid(633, 633, max_tiles=4) == (1, 1)
    assert tile_grid(634, 634, max_tiles=4) == (2, 2)
    # A smaller tile is filled sooner.
    assert tile_grid(633, 633, max_tiles=4, tile_px=224) == (2, 2)


# Worked out with the official functions: exact ties between grids of one number of tiles.
@pytest.mark.parametrize(
    ("limits", "size", "grid"),
    [
        ((2, 2), (5, 4), (1, 2)),
        ((4, 4), (100, 40), (4, 1)),
        ((4, 4), (10000, 4000), (2, 2)),
        ((5, 5), (2600, 1000), (1, 5)),
        ((6, 7), (300, 80), (6, 1)),
    ],
)
def test_min_tiles_is_kept_and_its_ties_are_the_official_ones(limits, size, grid):
    assert tile_grid(*size, min_tiles=limits[0], max_tiles=limits[1]) == grid


@given(
    width=st.integers(1, 40_000),
    height=st.integers(1, 40_000),
    limits=st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted),
)
def test_the_grid_is_within_its_limits_and_none_is_nearer(width, height, limits):
    min_tiles, max_tiles = limits
    grid = tile_grid(width, height, min_tiles=min_tiles, max_tiles=max_tiles)
    assert min_tiles <= grid.num_tiles <= max_tiles
    distance = abs(width / height - grid.columns / grid.rows)
    for columns in range(1, max_tiles + 1):
        for rows in range(1, max_tiles // columns + 1):
            if columns * rows >= min_tiles:
                assert abs(width / height - columns / rows) >= distance


def test_a_thumbnail_joins_only_a_grid_of_several_tiles():
    assert num_tiles_with_thumbnail(Grid(1, 1)) == 1
    assert num_tiles_with_thumbnail(Grid(2, 3)) == 7
    assert num_tiles_with_thumbnail(Grid(2, 3), use_thumbnail=False) == 6


def test_several_images_share_the_budget():
    assert share_budget(1, 12) == [12]
    assert share_budget(5, 12) == [2] * 5
    assert share_budget(30, 12) == [1] * 30
    assert share_budget(0, 12) == []
    assert share_budget(2, [6, 1]) == [6, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: tile_grid(10, 10, max_tiles=0),
        lambda: tile_grid(10, 10, max_tiles=-3),
        lambda: tile_grid(10, 10, max_tiles=LARGEST_MAX_TILES + 1),
        lambda: tile_grid(10, 10, min_tiles=0),
        lambda: tile_grid(10, 10, min_tiles=4, max_tiles=2),
        lambda: tile_grid(10, 10, tile_px=0),
        lambda: share_budget(2, 0),
        lambda: share_budget(2, [4, 0]),
    ],
)
def test_impossible_limits_are_refused(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.hint


@pytest.mark.parametrize(
    "call",
    [
        lambda: tile_grid(0, 10),
        lambda: tile_grid(10, -1),
        lambda: share_budget(-1, 12),
        lambda: share_budget(2, [4]),
    ],
)
def test_impossible_images_are_refused(call):
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.hint
