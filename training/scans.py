"""What happens to paper between the printer and the file: turning, light, blur, noise, JPEG."""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from PIL import Image, ImageChops, ImageFilter

NOISE_SIDE_PX = 1600
MAX_TURN_DEGREES = 3.0


def distort(
    rng: np.random.Generator, coverage: Image.Image, boxes: np.ndarray, *, strength: float
) -> tuple[Image.Image, np.ndarray]:
    """Turns, fades and blurs the ink (mode L, 255 = full ink); boxes float32 (n, 4) move along.

    Every effect comes with probability `strength` and grows with it.
    """
    if rng.random() < strength:
        degrees = float(rng.uniform(-1, 1)) * MAX_TURN_DEGREES * strength
        coverage, boxes = turn(coverage, boxes, degrees)
    if rng.random() < strength:
        left = 1 - float(rng.uniform(0.1, 0.5)) * strength
        coverage = coverage.point([int(level * left) for level in range(256)])
    if rng.random() < 0.3 * strength:
        coverage = _fade(rng, coverage, strength)
    if rng.random() < strength:
        radius = float(rng.uniform(0.2, 0.9)) * strength
        coverage = coverage.filter(ImageFilter.GaussianBlur(radius))
    return coverage, boxes


def soil(rng: np.random.Generator, image: Image.Image, *, strength: float) -> Image.Image:
    """Uneven light, grain and JPEG on an RGB page; with strength 0 a trace of grain at most."""
    if strength <= 0:
        return add_noise(rng, image, 3.0) if rng.random() < 0.1 else image
    if rng.random() < strength:
        image = _uneven_light(rng, image, strength)
    if rng.random() < 0.35 * strength:
        image = _shadow(rng, image, strength)
    if rng.random() < 0.35 * strength:
        image = _folds(rng, image, strength)
    if rng.random() < strength:
        image = add_noise(rng, image, float(rng.uniform(3, 16)) * strength)
    if rng.random() < strength:
        image = _through_jpeg(image, int(rng.integers(90 - int(55 * strength), 92)))
    return image


def show_through(
    rng: np.random.Generator, image: Image.Image, back: Image.Image, *, strength: float
) -> Image.Image:
    """An RGB page through whose paper the print of its back is seen: mirrored, blurred and faint.

    back: the page behind, upright; it is stretched to the size of `image`. strength (0 to 1): at 1,
    black print on the back darkens the paper by half; thin paper on a scanner's bright lid has
    about 0.2.
    """
    seen = back.convert("L").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seen = seen.resize(image.size, Image.Resampling.BILINEAR)
    # Paper scatters light over about its thickness: a tenth of a millimetre, some 1/2000 of a page.
    radius = max(image.size) / 1000 * float(rng.uniform(1.0, 2.0))
    seen = seen.filter(ImageFilter.GaussianBlur(radius))
    paper = max(1, int(np.percentile(np.asarray(seen), 90)))
    least = 1 - 0.5 * strength
    levels = [int(255 * (least + (1 - least) * min(1.0, level / paper))) for level in range(256)]
    light = seen.point(levels)
    return ImageChops.multiply(image.convert("RGB"), Image.merge("RGB", (light, light, light)))


def pale(image: Image.Image, left: float) -> Image.Image:
    """An RGB page whose ink has faded: `left` (0 to 1) of its contrast with the paper is left."""
    levels = np.asarray(image.convert("RGB"))
    paper = tuple(int(level) for level in np.median(levels.reshape(-1, 3), axis=0))
    return Image.blend(Image.new("RGB", image.size, paper), image.convert("RGB"), left)


def turn(
    coverage: Image.Image, boxes: np.ndarray, degrees: float
) -> tuple[Image.Image, np.ndarray]:
    """Rotated about the centre, less far where a character would leave the page."""
    for angle in (degrees, degrees / 2, degrees / 4):
        moved = _turned_boxes(boxes, coverage.width, coverage.height, angle)
        if len(boxes) == 0 or (
            np.nanmin(moved) >= 1
            and np.nanmax(moved[:, 2]) <= coverage.width - 1
            and np.nanmax(moved[:, 3]) <= coverage.height - 1
        ):
            return coverage.rotate(angle, Image.Resampling.BILINEAR), moved
    return coverage, boxes


def _turned_boxes(boxes: np.ndarray, width: int, height: int, degrees: float) -> np.ndarray:
    """Boxes of the same size about the turned centres (at 2 degrees a character hardly leans)."""
    # PIL turns counter-clockwise as seen, in an image whose y axis points down.
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (boxes[:, 0] + boxes[:, 2]) / 2 - width / 2
    y = (boxes[:, 1] + boxes[:, 3]) / 2 - height / 2
    centre = np.stack([cos * x + sin * y + width / 2, -sin * x + cos * y + height / 2], axis=1)
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def _uneven_light(rng: np.random.Generator, image: Image.Image, strength: float) -> Image.Image:
    lowest = 255 - int(90 * strength)
    coarse = rng.integers(lowest, 256, size=(3, 3), dtype=np.uint8)
    light = Image.fromarray(coarse).resize(image.size, Image.Resampling.BILINEAR)
    return ImageChops.multiply(image, Image.merge("RGB", (light, light, light)))


def _fade(rng: np.random.Generator, coverage: Image.Image, strength: float) -> Image.Image:
    """As a thermal printer fades: bands down the page where its head is worn, and pale rows."""
    width, height = coverage.size
    columns, rows = np.ones(width, np.float32), np.ones(height, np.float32)
    for _ in range(int(rng.integers(1, 5))):
        left, wide = int(rng.integers(width)), int(rng.integers(1, max(2, width // 60)))
        columns[left : left + wide] = 1 - float(rng.uniform(0.2, 0.7)) * strength
    steps = rng.uniform(1 - 0.5 * strength, 1, size=6)
    rows *= np.interp(np.linspace(0, 5, height), np.arange(6), steps).astype(np.float32)
    ink = np.asarray(coverage, np.float32) * columns * rows[:, None]
    return Image.fromarray(ink.astype(np.uint8))


def _shadow(rng: np.random.Generator, image: Image.Image, strength: float) -> Image.Image:
    """The edge of a shadow across the page, from a hand or the frame of a window."""
    width, height = image.size
    angle = float(rng.uniform(0, 2 * math.pi))
    x, y = np.arange(width) / width - 0.5, np.arange(height) / height - 0.5
    distance = x * math.cos(angle) + y[:, None] * math.sin(angle) - float(rng.uniform(-0.4, 0.4))
    soft = float(rng.uniform(0.01, 0.15))
    dark = float(rng.uniform(0.15, 0.45)) * strength
    light = 1 - dark / (1 + np.exp(np.clip(distance / soft, -30, 30)))
    return _lit(image, light)


def _folds(rng: np.random.Generator, image: Image.Image, strength: float) -> Image.Image:
    """Creases of a folded sheet: a dark line, and one side of it a little darker."""
    width, height = image.size
    light = np.ones((height, width), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        across = bool(rng.random() < 0.5)
        side = height if across else width
        place = int(side * rng.uniform(0.15, 0.85))
        profile = np.ones(side, np.float32)
        profile[place:] -= float(rng.uniform(0.02, 0.12)) * strength
        thick = int(rng.integers(1, 3))
        profile[place : place + thick] -= float(rng.uniform(0.1, 0.3)) * strength
        light *= profile[:, None] if across else profile
    return _lit(image, light)


def _lit(image: Image.Image, light: np.ndarray) -> Image.Image:
    """The page under `light` (height, width), 1 where it stays as it is."""
    mask = Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8))
    return ImageChops.multiply(image, Image.merge("RGB", (mask, mask, mask)))


@functools.cache
def _grain() -> np.ndarray:
    """One fixed sheet of grain: int8 (side, side) of standard deviation 32."""
    grain = np.random.default_rng(0).standard_normal((NOISE_SIDE_PX, NOISE_SIDE_PX)) * 32
    return np.clip(grain, -127, 127).astype(np.int8)


def add_noise(rng: np.random.Generator, image: Image.Image, sigma: float) -> Image.Image:
    """Grey grain of standard deviation `sigma` (levels of 255); sides up to `NOISE_SIDE_PX`."""
    top = int(rng.integers(0, max(1, NOISE_SIDE_PX - image.height)))
    left = int(rng.integers(0, max(1, NOISE_SIDE_PX - image.width)))
    sheet = Image.fromarray(
        _grain()[top : top + image.height, left : left + image.width].view(np.uint8)
    )
    # The levels of `sheet` are int8 seen as uint8: 128 and more are negative.
    levels = np.arange(256, dtype=np.uint8).view(np.int8) * (sigma / 32)
    bright = sheet.point(np.clip(levels, 0, 255).astype(int).tolist())
    dark = sheet.point(np.clip(-levels, 0, 255).astype(int).tolist())
    image = ImageChops.add(image, Image.merge("RGB", (bright,) * 3))
    return ImageChops.subtract(image, Image.merge("RGB", (dark,) * 3))


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
