"""What happens to paper between the printer and the file: turning, light, blur, noise, JPEG."""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from PIL import Image, ImageChops, ImageFilter

NOISE_SIDE_PX = 1536
MAX_TURN_DEGREES = 2.0


def weather(
    rng: np.random.Generator,
    image: Image.Image,
    boxes: np.ndarray,
    *,
    paper: tuple[int, int, int],
    strength: float,
) -> tuple[Image.Image, np.ndarray]:
    """The page as a scan of it, and the boxes moved along (float32 (n, 4)).

    With strength 0 only a trace of noise now and then. Otherwise every effect comes with
    probability `strength` and grows with it.
    """
    if strength <= 0:
        return (add_noise(rng, image, 3.0), boxes) if rng.random() < 0.1 else (image, boxes)
    if rng.random() < strength:
        image, boxes = turn(
            image, boxes, paper, float(rng.uniform(-1, 1)) * MAX_TURN_DEGREES * strength
        )
    if rng.random() < strength:
        image = _fade(image, paper, float(rng.uniform(0.1, 0.45)) * strength)
    if rng.random() < strength:
        image = _uneven_light(rng, image, strength)
    if rng.random() < strength:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9)) * strength))
    if rng.random() < strength:
        image = add_noise(rng, image, float(rng.uniform(3, 16)) * strength)
    if rng.random() < strength:
        image = _through_jpeg(image, int(rng.integers(90 - int(55 * strength), 92)))
    return image, boxes


def turn(
    image: Image.Image, boxes: np.ndarray, paper: tuple[int, int, int], degrees: float
) -> tuple[Image.Image, np.ndarray]:
    """Rotated about its centre, less far where a character would leave the page."""
    for angle in (degrees, degrees / 2, degrees / 4):
        moved = _turned_boxes(boxes, image.width, image.height, angle)
        if len(boxes) == 0 or not (
            np.nanmin(moved) < 1
            or np.nanmax(moved[:, 2]) > image.width - 1
            or np.nanmax(moved[:, 3]) > image.height - 1
        ):
            return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=paper), moved
    return image, boxes


def _turned_boxes(boxes: np.ndarray, width: int, height: int, degrees: float) -> np.ndarray:
    """Boxes of the same size about the turned centres (at 2 degrees a character hardly leans)."""
    # PIL turns counter-clockwise as seen, in an image whose y axis points down.
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (boxes[:, 0] + boxes[:, 2]) / 2 - width / 2
    y = (boxes[:, 1] + boxes[:, 3]) / 2 - height / 2
    centre = np.stack([cos * x + sin * y + width / 2, -sin * x + cos * y + height / 2], axis=1)
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def _fade(image: Image.Image, paper: tuple[int, int, int], amount: float) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, paper), amount)


def _uneven_light(rng: np.random.Generator, image: Image.Image, strength: float) -> Image.Image:
    lowest = 255 - int(90 * strength)
    coarse = rng.integers(lowest, 256, size=(3, 3), dtype=np.uint8)
    light = Image.fromarray(coarse, "L").resize(image.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(image, Image.merge("RGB", (light, light, light)))


@functools.cache
def _noise() -> np.ndarray:
    """One fixed sheet of grain, float16-free: int8 (side, side) of standard deviation 32."""
    grain = np.random.default_rng(0).standard_normal((NOISE_SIDE_PX, NOISE_SIDE_PX)) * 32
    return np.clip(grain, -127, 127).astype(np.int8)


def add_noise(rng: np.random.Generator, image: Image.Image, sigma: float) -> Image.Image:
    """Grey grain of standard deviation `sigma` (levels of 255)."""
    top = int(rng.integers(0, max(1, NOISE_SIDE_PX - image.height)))
    left = int(rng.integers(0, max(1, NOISE_SIDE_PX - image.width)))
    grain = _noise()[top : top + image.height, left : left + image.width]
    scaled = (grain * np.float32(sigma / 32)).astype(np.int16)
    bright = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8), "L")
    dark = Image.fromarray(np.clip(-scaled, 0, 255).astype(np.uint8), "L")
    image = ImageChops.add(image, Image.merge("RGB", (bright,) * 3))
    return ImageChops.subtract(image, Image.merge("RGB", (dark,) * 3))


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
