"""Which colour to put behind a picture with transparent pixels, so that what is drawn shows."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE: Final = (255, 255, 255)
BLACK: Final = (0, 0, 0)
GREY: Final = (128, 128, 128)

# A step of so many levels is seen as well as a larger one.
_CLEAR_STEP: Final = 64
# White stays while it shows so much of what there is to see.
_ENOUGH: Final = 0.75
_MOST_SIDE_PX: Final = 2048


def choose_background(image: Image.Image) -> tuple[int, int, int] | None:
    """White, black or grey, for an image of mode RGBA; None where no pixel shows at all.

    White is what people expect, and what black letters need. White or pale letters need black, and
    black and white ones together need grey. For each colour the steps of brightness from one pixel
    to the next are added up, as far as they are clear; white is taken if it shows three quarters of
    what shows on any of the three, otherwise the one that shows most. Steps inside opaque parts
    show on all, so that a photograph which is cut out stays on white.

    With all pixels transparent, the colours under them are all that there is (some programs write
    32-bit pictures so): then alpha is best dropped, as the official code does.
    """
    small = image.convert("LA")
    factor = -(-max(image.size) // _MOST_SIDE_PX)
    if factor > 1:
        small = small.reduce(factor)
    samples = np.asarray(small, dtype=np.float32)
    brightness, alpha = samples[..., 0], samples[..., 1] / 255
    if not alpha.any():
        return None
    shown = {
        colour: _clear_steps(brightness * alpha + colour[0] * (1 - alpha))
        for colour in (WHITE, BLACK, GREY)
    }
    most = sum(float(np.maximum.reduce(steps).sum()) for steps in zip(*shown.values(), strict=True))
    shares = {
        colour: sum(float(part.sum()) for part in steps) / (most or 1.0)
        for colour, steps in shown.items()
    }
    if most == 0 or shares[WHITE] >= _ENOUGH:
        return WHITE
    return max(shares, key=lambda colour: shares[colour])


def _clear_steps(brightness: NDArray[np.floating]) -> tuple[NDArray[np.floating], ...]:
    """How clear the steps between neighbours are, across and down; a border of its own is none."""
    return tuple(np.minimum(np.abs(np.diff(brightness, axis=axis)), _CLEAR_STEP) for axis in (0, 1))
