"""Pages to look at: paper with its blemishes, with something to read on it or nothing.

Sizes in millimetres are those of an A4 sheet, whose long side the picture's long side is taken for.
The one font is that which Pillow brings along, so that nothing needs to be installed.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

LONG_SIDE_MM = 297.0
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were all her she there would their we him been has when who will no "
    "more if out so up said what its about than into them can only other time new some could these "
    "two may first then do any like my now over such our man me even most made after also well "
    "Invoice Total 1,240.50 page 17 contract between parties agree paragraph Hamburg 2019 receipt"
).split()


def font(size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=max(4.0, size_px))


def sentence(rng: np.random.Generator, num_words: int) -> str:
    return " ".join(str(rng.choice(WORDS)) for _ in range(num_words))


class Sheet:
    """Ink on paper; `ink` is coverage, mode L, 255 where there is full ink."""

    def __init__(self, size_px: tuple[int, int]) -> None:
        self.size_px = size_px
        self.mm = max(size_px) / LONG_SIDE_MM
        self.ink = Image.new("L", size_px)
        self.draw = ImageDraw.Draw(self.ink)

    @property
    def point(self) -> float:
        """Pixels of a typographic point."""
        return self.mm * 25.4 / 72

    def text(
        self, at_mm: tuple[float, float], text: str, points: float, ink: int = 255
    ) -> tuple[float, float, float, float]:
        """One line; its box in pixels."""
        at = (at_mm[0] * self.mm, at_mm[1] * self.mm)
        face = font(points * self.point)
        self.draw.text(at, text, fill=ink, font=face)
        return self.draw.textbbox(at, text, font=face)

    def column(
        self,
        rng: np.random.Generator,
        box_mm: tuple[float, float, float, float],
        points: float,
        ink: int = 255,
        leading: float = 1.35,
    ) -> None:
        """Lines of words that fill a box, with a short last line now and then."""
        left, top, right, bottom = box_mm
        face = font(points * self.point)
        y = top
        while y + points * 0.3528 < bottom:
            share = 1.0 if rng.random() < 0.8 else float(rng.uniform(0.2, 0.9))
            line = ""
            while face.getlength(line) < (right - left) * self.mm * share:
                line += " " + str(rng.choice(WORDS))
            line = line.strip().rpartition(" ")[0] or line.strip()
            self.draw.text((left * self.mm, y * self.mm), line, fill=ink, font=face)
            y += points * 0.3528 * leading


def full_page(rng: np.random.Generator, size_px: tuple[int, int], points: float = 11.0) -> Sheet:
    sheet = Sheet(size_px)
    width, height = (side / sheet.mm for side in size_px)
    sheet.text((22, 18), sentence(rng, 3), points * 1.7)
    sheet.column(rng, (22, 35, width - 20, height - 25), points)
    return sheet


def paper(
    rng: np.random.Generator,
    ink: Image.Image,
    *,
    strength: float,
    ink_colour: tuple[int, int, int] = (25, 25, 30),
    paper_colour: tuple[int, int, int] | None = None,
) -> Image.Image:
    """The ink on paper that is white, yellowish or grey, unevenly lit where `strength` is not 0."""
    if paper_colour is None:
        tone = float(rng.uniform(0, 1)) * strength
        base = 255 - float(rng.uniform(0, 40)) * strength
        paper_colour = (int(base), int(base - 8 * tone), int(base - 60 * tone))
    image = Image.composite(
        Image.new("RGB", ink.size, ink_colour), Image.new("RGB", ink.size, paper_colour), ink
    )
    if strength and rng.random() < 0.7:
        coarse = rng.integers(255 - int(80 * strength), 256, size=(3, 3), dtype=np.uint8)
        light = Image.fromarray(coarse).resize(ink.size, Image.Resampling.BILINEAR)
        image = ImageChops.multiply(image, Image.merge("RGB", (light, light, light)))
    return image


def through(back: Sheet, *, contrast: float, blur_mm: float) -> Image.Image:
    """What of the back of a sheet is seen on its front: mirrored, blurred by the paper, weak."""
    seen = ImageOps.mirror(back.ink).filter(ImageFilter.GaussianBlur(blur_mm * back.mm))
    return seen.point([int(level * contrast) for level in range(256)])


def scanned(rng: np.random.Generator, image: Image.Image, *, strength: float) -> Image.Image:
    """Blur of the lens, grain and JPEG."""
    if strength <= 0:
        return image
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9)) * strength))
    noise = rng.standard_normal((image.height, image.width), dtype=np.float32)
    noise *= float(rng.uniform(1, 8)) * strength
    grained = np.asarray(image, np.float32) + noise[:, :, None]
    image = Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8))
    if rng.random() < 0.7:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(92 - int(50 * strength), 95)))
        image = Image.open(buffer).convert("RGB")
    return image


def dark_border(rng: np.random.Generator, image: Image.Image, grey: int | None = None) -> None:
    """The scanner's lid beside the sheet, straight or as a wedge."""
    width, height = image.size
    mm = max(image.size) / LONG_SIDE_MM
    draw = ImageDraw.Draw(image)
    grey = int(rng.integers(0, 60)) if grey is None else grey
    for side in range(4):
        if rng.random() < 0.5:
            continue
        start, end = (float(rng.uniform(0, 9)) * mm for _ in range(2))
        outline = [
            [(0, 0), (start, 0), (end, height), (0, height)],
            [(width, 0), (width - start, 0), (width - end, height), (width, height)],
            [(0, 0), (0, start), (width, end), (width, 0)],
            [(0, height), (0, height - start), (width, height - end), (width, height)],
        ][side]
        draw.polygon(outline, fill=(grey, grey, grey))


def punch_holes(rng: np.random.Generator, image: Image.Image) -> None:
    mm = max(image.size) / LONG_SIDE_MM
    draw = ImageDraw.Draw(image)
    grey = int(rng.integers(0, 130))
    x, radius = float(rng.uniform(9, 15)) * mm, float(rng.uniform(2.4, 3.2)) * mm
    middle, apart = image.height / 2, 40 * mm
    for y in (middle - apart, middle + apart):
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=(grey, grey, min(255, grey + 5)))


def staple(rng: np.random.Generator, image: Image.Image) -> None:
    mm = max(image.size) / LONG_SIDE_MM
    draw = ImageDraw.Draw(image)
    x, y = (float(rng.uniform(6, 14)) * mm for _ in range(2))
    angle = float(rng.uniform(-1.0, 1.0))
    length = float(rng.uniform(8, 13)) * mm
    end = (x + length * math.cos(angle), y + length * math.sin(angle))
    draw.line((x, y, *end), fill=(70, 70, 72), width=max(1, round(0.6 * mm)))


def folds(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Creases from edge to edge: one side darker, and a thin dark or bright line."""
    width, height = image.size
    light = np.ones((height, width), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        across = bool(rng.random() < 0.7)
        side = height if across else width
        place = int(side * rng.uniform(0.2, 0.8))
        profile = np.ones(side, np.float32)
        profile[place:] -= float(rng.uniform(0.0, 0.08))
        thick = int(rng.integers(1, 4))
        profile[place : place + thick] -= float(rng.uniform(0.03, 0.25))
        light *= profile[:, None] if across else profile
    lit = np.asarray(image, np.float32) * light[:, :, None]
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def dust(rng: np.random.Generator, image: Image.Image, num_specks: int) -> None:
    mm = max(image.size) / LONG_SIDE_MM
    draw = ImageDraw.Draw(image)
    for _ in range(num_specks):
        x, y = float(rng.uniform(0, image.width)), float(rng.uniform(0, image.height))
        radius = float(rng.uniform(0.05, 0.25)) * mm
        grey = int(rng.integers(20, 190))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(grey, grey, grey))
