"""From an array of pixels to an image of Pillow's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivl.errors import RequestError

_SHAPES = "Give (height, width), (height, width, 3) for RGB or (height, width, 4) for RGBA."


def is_tensor(source: object) -> bool:
    """Whether it is a tensor of torch's, which is not imported for it."""
    return type(source).__module__.partition(".")[0] == "torch"


def image_of_array(source: Any) -> Image.Image:
    """An image from a NumPy array, or what can be viewed as one without a copy.

    shape: (height, width) or (height, width, 1) is grey, (height, width, 3) RGB in this order
        (OpenCV's is the other way round), (height, width, 4) RGB and alpha.
    dtype: whole numbers are 0 to 255, uint16 0 to 65535, floats 0 to 1; bool is black and white.
    Raises RequestError for every other shape, dtype and range.
    """
    if is_tensor(source):
        raise RequestError(
            "The image is a torch tensor.",
            "Give a NumPy array: `tensor.permute(1, 2, 0).cpu().numpy()` where the colours come "
            "first.",
        )
    array = np.asarray(source)
    _check_shape(array.shape)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(_to_bytes(array)))


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)):
        if 0 in shape:
            raise RequestError(f"The image has no pixels (its shape is {shape}).")
        return
    hint = _SHAPES
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        hint = "Its colours come first: give `array.transpose(1, 2, 0)`."
    elif len(shape) == 4:
        hint = "Several images are a list: give `list(array)`."
    raise RequestError(f"An array of shape {shape} is no image.", hint)


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    kind = array.dtype
    if kind == np.uint8:
        return array
    if kind == np.bool_:
        return array.astype(np.uint8) * 255
    if kind == np.uint16:  # 65535 is 255 * 257
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not (np.issubdtype(kind, np.integer) or np.issubdtype(kind, np.floating)):
        hint = "Give uint8, or floats from 0 to 1."
        raise RequestError(f"An array of {kind} is no image.", hint)
    top, what = (1, "floats") if np.issubdtype(kind, np.floating) else (255, "whole numbers")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= top):  # not-a-number is neither
        raise RequestError(
            f"The image is an array of {what} from {low} to {high}.",
            f"{what.capitalize()} of an image are 0 to {top}; "
            f"`array.clip(0, {255 if top == 1 else top}).astype('uint8')` makes bytes of others.",
        )
    return np.floor(array * 255.0 + 0.5).astype(np.uint8) if top == 1 else array.astype(np.uint8)
