"""Blank pages are told from pages with anything to read, however little of it or faint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from ivl.documents.blank import is_blank
from tests.documents.drawn_pages import (
    Sheet,
    dark_border,
    dust,
    folds,
    full_page,
    paper,
    punch_holes,
    scanned,
    sentence,
    staple,
    through,
)

Draw = Callable[[np.random.Generator, float], Image.Image]
SIZES_PX = ((1240, 1754), (1654, 2339), (1870, 2650), (2339, 1654))


def size(rng: np.random.Generator) -> tuple[int, int]:
    return SIZES_PX[int(rng.integers(len(SIZES_PX)))]


# Pages with nothing to read.


def empty(rng: np.random.Generator, strength: float) -> Image.Image:
    return scanned(rng, paper(rng, Image.new("L", size(rng)), strength=strength), strength=strength)


def show_through(rng: np.random.Generator, strength: float) -> Image.Image:
    back = full_page(rng, size(rng), float(rng.uniform(8, 13)))
    if rng.random() < 0.3:  # a picture on the back
        x, y = (float(rng.uniform(0.2, 0.6)) * side for side in back.size_px)
        back.draw.rectangle((x, y, x + 60 * back.mm, y + 45 * back.mm), fill=200)
    seen = through(
        back,
        contrast=float(rng.uniform(0.03, 0.05 + 0.17 * strength)),
        blur_mm=float(rng.uniform(0.32, 0.8)),
    )
    return scanned(rng, paper(rng, seen, strength=strength), strength=strength)


def border(rng: np.random.Generator, strength: float) -> Image.Image:
    image = paper(rng, Image.new("L", size(rng)), strength=strength)
    dark_border(rng, image)
    return scanned(rng, image, strength=strength)


def holes_and_staple(rng: np.random.Generator, strength: float) -> Image.Image:
    image = paper(rng, Image.new("L", size(rng)), strength=strength)
    punch_holes(rng, image)
    if rng.random() < 0.5:
        staple(rng, image)
    return scanned(rng, image, strength=strength)


def folded(rng: np.random.Generator, strength: float) -> Image.Image:
    image = folds(rng, paper(rng, Image.new("L", size(rng)), strength=strength))
    return scanned(rng, image, strength=strength)


def dusty(rng: np.random.Generator, strength: float) -> Image.Image:
    image = paper(rng, Image.new("L", size(rng)), strength=strength)
    dust(rng, image, int(rng.integers(1, 40)))
    return scanned(rng, image, strength=strength)


def everything(rng: np.random.Generator, strength: float) -> Image.Image:
    back = full_page(rng, size(rng))
    seen = through(back, contrast=float(rng.uniform(0.03, 0.15)), blur_mm=0.5)
    image = folds(rng, paper(rng, seen, strength=strength))
    punch_holes(rng, image)
    dust(rng, image, 10)
    dark_border(rng, image)
    return scanned(rng, image, strength=strength)


BLANK: dict[str, Draw] = {
    "empty": empty,
    "show-through": show_through,
    "border": border,
    "holes": holes_and_staple,
    "folds": folded,
    "dust": dusty,
    "everything": everything,
}

# Pages with something to read.


def _place(rng: np.random.Generator, sheet: Sheet) -> tuple[float, float]:
    width, height = (side / sheet.mm for side in sheet.size_px)
    return float(rng.uniform(15, width - 90)), float(rng.uniform(12, height - 20))


def _printed(
    rng: np.random.Generator, sheet: Sheet, strength: float, faintest: float = 1.0
) -> Image.Image:
    """On paper with or without the show-through of its back, with ink of some contrast."""
    if faintest < 1:
        share = float(rng.uniform(faintest, max(faintest, 0.5)))
        sheet.ink = sheet.ink.point([int(level * share) for level in range(256)])
    ink = sheet.ink
    if strength and rng.random() < 0.5:
        back = full_page(rng, sheet.size_px)
        contrast = float(rng.uniform(0.03, 0.05 + 0.1 * strength))
        ink = ImageChops.lighter(ink, through(back, contrast=contrast, blur_mm=0.5))
    image = paper(rng, ink, strength=strength)
    if strength and rng.random() < 0.3:
        dark_border(rng, image)
    if strength and rng.random() < 0.3:
        image = folds(rng, image)
    return scanned(rng, image, strength=strength)


def page_number(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    width, height = (side / sheet.mm for side in sheet.size_px)
    number = str(int(rng.integers(1, 400)))
    x = float(rng.choice([15.0, width / 2, width - 22]))
    y = float(rng.choice([8.0, height - 15]))
    sheet.text((x, y), number, float(rng.uniform(9, 12)))
    return _printed(rng, sheet, strength)


def single_digit(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    width, height = (side / sheet.mm for side in sheet.size_px)
    sheet.text((width / 2, height - 15), str(int(rng.integers(1, 10))), float(rng.uniform(8, 12)))
    return _printed(rng, sheet, strength)


def faint_line(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    sheet.text(_place(rng, sheet), sentence(rng, 6), float(rng.uniform(9, 14)))
    return _printed(rng, sheet, strength, faintest=0.12)


def pencil(rng: np.random.Generator, strength: float) -> Image.Image:
    """Thin strokes that waver in a hand's way, grey and grainy."""
    sheet = Sheet(size(rng))
    x, y = (place * sheet.mm for place in _place(rng, sheet))
    for _ in range(int(rng.integers(4, 12))):
        t = np.linspace(0, 2 * np.pi, 14)
        a, b = rng.uniform(0.5, 1.6, size=2) * sheet.mm
        phase = rng.uniform(0, 6, size=2)
        xs, ys = x + a * np.sin(t + phase[0]), y + b * np.sin(t * rng.uniform(0.5, 2) + phase[1])
        sheet.draw.line(
            [*zip(xs.tolist(), ys.tolist(), strict=True)],
            fill=int(rng.integers(90, 200)),
            width=max(1, round(0.4 * sheet.mm)),
        )
        x += 2.4 * sheet.mm
    return _printed(rng, sheet, strength)


def watermark(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    place = (25.0, float(rng.uniform(60, 120)))
    sheet.text(place, "CONFIDENTIAL", float(rng.uniform(25, 60)))
    return _printed(rng, sheet, strength, faintest=0.06)


def footer(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    height = sheet.size_px[1] / sheet.mm
    sheet.text((20, height - 12), sentence(rng, int(rng.integers(2, 10))), 6)
    return _printed(rng, sheet, strength, faintest=0.35)


def white_on_black(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    sheet.text(_place(rng, sheet), sentence(rng, 4), float(rng.uniform(8, 20)))
    return scanned(rng, ImageOps.invert(paper(rng, sheet.ink, strength=0)), strength=strength)


def banner(rng: np.random.Generator, strength: float) -> Image.Image:
    """White letters on a dark band at the edge of the page, which is no scanner's border."""
    sheet = Sheet(size(rng))
    width = sheet.size_px[0]
    deep = float(rng.uniform(9, 16))
    sheet.draw.rectangle((0, 0, width, deep * sheet.mm), fill=255)
    sheet.text((float(rng.uniform(2, 120)), 2), sentence(rng, 2), float(rng.uniform(9, 14)), ink=0)
    return scanned(rng, paper(rng, sheet.ink, strength=strength), strength=strength)


def corner(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    width, height = (side / sheet.mm for side in sheet.size_px)
    x, y = float(rng.choice([1.0, width - 20])), float(rng.choice([0.5, height - 6]))
    sheet.text((x, y), sentence(rng, 2)[:9], float(rng.uniform(8, 11)))
    return scanned(rng, paper(rng, sheet.ink, strength=strength), strength=strength)


def stamp(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    x, y = (place * sheet.mm for place in _place(rng, sheet))
    radius = float(rng.uniform(10, 18)) * sheet.mm
    box = (x, y, x + 2 * radius, y + 2 * radius)
    ink = int(rng.integers(110, 200))
    sheet.draw.ellipse(box, outline=ink, width=max(2, round(0.6 * sheet.mm)))
    sheet.text((x / sheet.mm + 7, y / sheet.mm + 9), "PAID", 12, ink=ink)
    image = paper(rng, sheet.ink, strength=strength, ink_colour=(60, 60, 190))
    return scanned(rng, image, strength=strength)


def small_photo(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    image = paper(rng, sheet.ink, strength=strength)
    coarse = rng.integers(20, 235, size=(5, 6, 3), dtype=np.uint8)
    side = float(rng.uniform(20, 45)) * sheet.mm
    photo = Image.fromarray(coarse).resize((int(side * 1.3), int(side)), Image.Resampling.BICUBIC)
    x, y = (int(place * sheet.mm) for place in _place(rng, sheet))
    image.paste(photo, (x, y))
    return scanned(rng, image, strength=strength)


def faint_page(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = full_page(rng, size(rng), float(rng.uniform(8, 12)))
    return _printed(rng, sheet, strength, faintest=0.12)


def yellow_marker(rng: np.random.Generator, strength: float) -> Image.Image:
    """A word in light yellow on white: bright, and seen in the blue light alone."""
    sheet = Sheet(size(rng))
    sheet.text(_place(rng, sheet), sentence(rng, 3), float(rng.uniform(14, 24)))
    image = paper(
        rng, sheet.ink, strength=0, ink_colour=(255, 240, 60), paper_colour=(255, 255, 255)
    )
    return scanned(rng, image, strength=strength)


def out_of_focus(rng: np.random.Generator, strength: float) -> Image.Image:
    """A photo of a page that is as blurred as a show-through, and dark all the same."""
    sheet = Sheet(size(rng))
    sheet.text(_place(rng, sheet), sentence(rng, 5), float(rng.uniform(11, 14)))
    sheet.ink = sheet.ink.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.5)) * sheet.mm))
    return _printed(rng, sheet, strength)


def empty_form(rng: np.random.Generator, strength: float) -> Image.Image:
    """Lines drawn sharply are something to read: a table's or a form's."""
    sheet = Sheet(size(rng))
    width, height = sheet.size_px
    thick = max(1, round(0.25 * sheet.mm))
    for row in range(int(rng.integers(3, 12))):
        y = (60 + 9 * row) * sheet.mm
        sheet.draw.line((20 * sheet.mm, y, width - 20 * sheet.mm, y), fill=200, width=thick)
    for x in (20 * sheet.mm, width - 20 * sheet.mm):
        sheet.draw.line((x, 60 * sheet.mm, x, min(height, 120 * sheet.mm)), fill=200, width=thick)
    return _printed(rng, sheet, strength)


def crossed_by_a_fold(rng: np.random.Generator, strength: float) -> Image.Image:
    sheet = Sheet(size(rng))
    x, y = _place(rng, sheet)
    box = sheet.text((x, y), sentence(rng, 4), float(rng.uniform(9, 12)))
    image = paper(rng, sheet.ink, strength=strength)
    middle = (box[1] + box[3]) / 2
    ImageDraw.Draw(image).line((0, middle, image.width, middle), fill=(150, 150, 150), width=2)
    return scanned(rng, image, strength=strength)


READABLE: dict[str, Draw] = {
    "page number": page_number,
    "single digit": single_digit,
    "faint line": faint_line,
    "pencil": pencil,
    "watermark": watermark,
    "footer": footer,
    "white on black": white_on_black,
    "banner": banner,
    "corner": corner,
    "stamp": stamp,
    "photo": small_photo,
    "faint page": faint_page,
    "yellow": yellow_marker,
    "out of focus": out_of_focus,
    "form": empty_form,
    "crossed by a fold": crossed_by_a_fold,
}
STRENGTHS = (0.0, 0.3, 0.6, 1.0)
"""How bad the scan is: from none of its faults to all."""


def draw(kind: str, number: int, strength: float) -> Image.Image:
    seed = [*kind.encode(), number, int(strength * 10)]
    return {**BLANK, **READABLE}[kind](np.random.default_rng(seed), strength)


@pytest.mark.parametrize("kind", READABLE)
def test_a_page_with_anything_to_read_is_never_blank(kind: str) -> None:
    assert [strength for strength in STRENGTHS if is_blank(draw(kind, 1, strength))] == []


# A punch hole on a crease is neither; pages with all blemishes at once may be read for nothing.
@pytest.mark.parametrize("kind", sorted(BLANK.keys() - {"everything"}))
def test_paper_with_its_blemishes_is_blank(kind: str) -> None:
    assert [strength for strength in STRENGTHS if not is_blank(draw(kind, 0, strength))] == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_kind_are_looked_at(mode: str) -> None:
    assert is_blank(Image.new("L", (800, 1100), 255).convert(mode))
    image = Image.new("L", (800, 1100), 255)
    ImageDraw.Draw(image).text((300, 500), "seventeen", fill=0)
    assert not is_blank(image.convert(mode))


def test_a_page_of_one_colour_is_blank_and_what_is_tiny_is_not() -> None:
    assert is_blank(Image.new("RGB", (600, 800), "black"))
    assert is_blank(Image.new("RGB", (600, 800), "khaki"))
    assert not is_blank(Image.new("RGB", (5, 5), "white"))
    assert not is_blank(Image.new("RGB", (3000, 2), "white"))


@pytest.mark.parametrize("turns", [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180])
def test_a_turned_page_is_told_too(turns: Image.Transpose) -> None:
    assert is_blank(draw("show-through", 0, 0.6).transpose(turns))
    assert not is_blank(draw("footer", 0, 0.6).transpose(turns))
