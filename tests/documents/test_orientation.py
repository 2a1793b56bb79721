"""Whether lines of text run across a page or down it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ivl.documents.orientation import lines_run
from tests.documents.drawn_pages import WORDS, Sheet, full_page, paper, scanned

Kind = Callable[[np.random.Generator], Sheet]
SIZE_PX = (1240, 1754)


def a_full_page(rng: np.random.Generator) -> Sheet:
    return full_page(rng, SIZE_PX)


def two_columns(rng: np.random.Generator) -> Sheet:
    sheet = Sheet(SIZE_PX)
    sheet.column(rng, (18, 20, 101, 277), 9)
    sheet.column(rng, (109, 20, 192, 277), 9)
    return sheet


def words_in_a_list(rng: np.random.Generator) -> Sheet:
    sheet = Sheet(SIZE_PX)
    for row in range(28):
        sheet.text((20, 20 + 9 * row), str(rng.choice(WORDS)), 11)
    return sheet


def ruled_table(rng: np.random.Generator) -> Sheet:
    sheet = Sheet(SIZE_PX)
    thick = round(0.4 * sheet.mm)
    for column in range(7):
        x = (15 + 30 * column) * sheet.mm
        sheet.draw.line((x, 30 * sheet.mm, x, 270 * sheet.mm), fill=255, width=thick)
    for row in range(30):
        for column in range(6):
            sheet.text((17 + 30 * column, 32 + 8 * row), str(rng.choice(WORDS)), 10)
    return sheet


def drawn(sheet: Sheet, rng: np.random.Generator, skew: float) -> Image.Image:
    image = paper(rng, sheet.ink, strength=0.3)
    corner = image.getpixel((2, 2))
    assert isinstance(corner, tuple)
    image = image.rotate(skew, Image.Resampling.BILINEAR, fillcolor=corner)
    return scanned(rng, image, strength=0.5)


@pytest.mark.parametrize("skew", [0.0, -5.0, 5.0])
@pytest.mark.parametrize("kind", [a_full_page, two_columns])
def test_text_is_told_as_it_stands(kind: Kind, skew: float) -> None:
    rng = np.random.default_rng(5)
    image = drawn(kind(rng), rng, skew)
    assert lines_run(image) == "across"
    assert lines_run(image.transpose(Image.Transpose.ROTATE_180)) == "across"
    assert lines_run(image.transpose(Image.Transpose.ROTATE_90)) == "down"
    assert lines_run(image.transpose(Image.Transpose.ROTATE_270)) == "down"


@pytest.mark.parametrize("kind", [words_in_a_list, ruled_table])
def test_columns_of_words_are_never_taken_for_lines(kind: Kind) -> None:
    """A turned page that is called "across" would be lost; one that is unclear is only asked."""
    rng = np.random.default_rng(6)
    image = drawn(kind(rng), rng, 0.0)
    assert lines_run(image) != "down"
    assert lines_run(image.transpose(Image.Transpose.ROTATE_90)) != "across"


def test_light_letters_on_a_dark_page_are_text() -> None:
    rng = np.random.default_rng(7)
    ink = full_page(rng, SIZE_PX).ink
    image = paper(rng, ink, strength=0, ink_colour=(240, 240, 240), paper_colour=(20, 30, 40))
    assert lines_run(image) == "across"
    assert lines_run(image.transpose(Image.Transpose.ROTATE_90)) == "down"


@pytest.mark.parametrize("size_px", [(1240, 1754), (40, 30), (1, 1), (3000, 2)])
def test_where_there_is_no_text_it_is_unclear(size_px: tuple[int, int]) -> None:
    assert lines_run(Image.new("RGB", size_px, "white")) == "unclear"


def test_one_word_is_too_little() -> None:
    sheet = Sheet(SIZE_PX)
    sheet.text((100, 100), "No.", 10)
    assert lines_run(paper(np.random.default_rng(0), sheet.ink, strength=0)) == "unclear"
