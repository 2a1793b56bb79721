"""Images, animations and multi-page TIFF, decoded by Pillow to upright 8-bit RGB."""

from __future__ import annotations

import importlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ivl.errors import CapacityError, RequestError
from ivl.pages.sources import PixelLimit, page_label
from ivl.refused import is_lfs_pointer, lfs_complaint

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


_SHAPES = "Give (height, width), (height, width, 3) for RGB or (height, width, 4) for RGBA."


def is_tensor(source: object) -> bool:
    """Whether it is a tensor of torch's, which is not imported for it."""
    return type(source).__module__.partition(".")[0] == "torch"


def image_of_array(source: object) -> Image.Image:
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
    raise RequestError(f"An array of shape {shape} is not an image.", hint)


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
        raise RequestError(f"An array of {kind} is not an image.", hint)
    top, what = (1, "floats") if np.issubdtype(kind, np.floating) else (255, "whole numbers")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= top):  # not-a-number is neither
        raise RequestError(
            f"The image is an array of {what} from {low} to {high}.",
            f"{what.capitalize()} of an image are 0 to {top}; "
            f"`array.clip(0, {255 if top == 1 else top}).astype('uint8')` makes bytes of others.",
        )
    return np.floor(array * 255.0 + 0.5).astype(np.uint8) if top == 1 else array.astype(np.uint8)


Background: TypeAlias = tuple[int, int, int] | Literal["auto"] | None

# Raster formats only: others of Pillow's start a program (EPS) or hold no picture that it can
# decode. HEIF is there when the extra `heif` is installed.
_FORMATS: Final = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JPEG2000", "PPM"),
    *("TGA", "ICO", "ICNS", "PCX", "SGI", "QOI", "PSD", "DDS", "XBM", "XPM"),
)

# What Pillow's decoders raise on damaged data, found by feeding them damaged files.
_DAMAGE: Final = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError),
    *(AttributeError, RuntimeError, struct.error, zlib.error),
)

# Formats whose further pictures are parts of the first: depth and gain maps of phones, layers.
_ONE_PICTURE: Final = ("MPO", "PSD")

# Of a TIFF's pictures some are smaller versions (1) or transparency masks (4) of another one
# (tag NewSubfileType, section 8 of the specification, revision 6.0).
_NEW_SUBFILE_TYPE: Final = 254
_NO_PAGE: Final = 1 | 4

_HEIF_BRANDS: Final = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"),
)

# Opening changes Pillow's own limit for a moment, which is global.
_open_lock = threading.Lock()


class HeldImage:
    """An image of Pillow's, which is left as it is: the picture that it shows now, alone."""

    num_pages = 1

    def __init__(self, image: Image.Image, background: Background, limit: PixelLimit) -> None:
        if _is_closed(image):
            raise RequestError(
                "The Pillow image is closed.",
                "Use it inside its `with` block, or give a `.copy()`.",
            )
        self._image, self._limit = image, limit
        self._background: Background = background

    def size_px(self, page: int) -> tuple[int, int]:
        return self.load(page).size

    def load(self, page: int) -> Image.Image:
        self._limit.check(self._image.size, "The image")
        with _refuse_damage("The image"):
            self._image.load()
        image = _upright(self._image, in_place=False)
        image.format = self._image.format
        return _to_rgb(image, self._background)


class ImageFile:
    """An open file of one or several pictures, of which the headers are read at once.

    A photo of a phone that carries its depth or gain map as a further picture has one page, and so
    does a drawing with layers; smaller versions of a page in a TIFF do not count.
    """

    def __init__(
        self, file: BinaryIO, label: str, background: Background, limit: PixelLimit
    ) -> None:
        self._label, self._limit = label, limit
        self._background: Background = background
        with _refuse_damage(label):
            self._image = _open_header(file, label, limit)
            self._pages = _pages(self._image)
        self.num_pages = len(self._pages)

    def num_pixels(self, page: int) -> int:
        """As its header says; RequestError where they are more than the limit."""
        with _refuse_damage(page_label(self._label, page + 1, self.num_pages)):
            self._seek(page)
        return self._image.width * self._image.height

    def size_px(self, page: int) -> tuple[int, int]:
        """Width and height of page `page`, from 0; it is decoded, for it may have to be turned."""
        return self.load(page).size

    def load(self, page: int) -> Image.Image:
        """Page `page`, from 0, as upright RGB."""
        with _refuse_damage(page_label(self._label, page + 1, self.num_pages)):
            self._seek(page)
            self._image.load()
            image = self._image
            if self.num_pages > 1:  # the same object becomes the next page
                image = image.copy()
                image.format = self._image.format
        return _to_rgb(_upright(image, in_place=True), self._background)

    def _seek(self, page: int) -> None:
        if self._image.tell() != self._pages[page]:
            self._image.seek(self._pages[page])
        self._limit.check(self._image.size, page_label(self._label, page + 1, self.num_pages))


def _is_closed(image: Image.Image) -> bool:
    """Whether its pixels are gone, or the file is from which they have yet to come."""
    if getattr(image, "tile", None):
        file = getattr(image, "fp", None)
        return file is None or getattr(file, "closed", False)
    try:
        return image.im is None
    except ValueError:
        return True


def _pages(image: Image.Image) -> list[int]:
    """The numbers of the frames that are pages of their own; the image may be left at any."""
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format in _ONE_PICTURE:
        return [image.tell()]
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return list(range(count))
    pages = []
    for number in range(count):
        image.seek(number)
        kind = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)  # type: ignore[attr-defined]
        if not (isinstance(kind, int) and kind & _NO_PAGE):
            pages.append(number)
    return pages or [0]


def _open_header(file: BinaryIO, label: str, limit: PixelLimit) -> Image.Image:
    """Read the header and no more, with our limit in the place of Pillow's own."""
    Image.init()
    if "HEIF" not in Image.OPEN and _is_heif(file):
        _register_heif()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _open_lock, warnings.catch_warnings():
        pillow_limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = limit.max_pixels
        warnings.simplefilter("ignore")
        try:
            return Image.open(file, formats=formats)
        except Image.DecompressionBombError:
            raise limit.exceeded(label) from None
        except UnidentifiedImageError:
            raise _not_an_image(file, label) from None
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def _not_an_image(file: BinaryIO, label: str) -> RequestError:
    file.seek(0)
    start = file.read(512)
    if is_lfs_pointer(start):
        return RequestError(*lfs_complaint(label))
    if _is_heif(file):
        if "HEIF" in Image.OPEN:
            return RequestError(f"{label} is a damaged HEIC image.", "Save it again.")
        return RequestError(
            f"{label} is a HEIC image.",
            "`pip install 'ivl[heif]'` lets ivl read it; or save it as JPEG or PNG.",
        )
    if b"<svg" in start:
        return RequestError(f"{label} is an SVG drawing.", "Export it as PNG.")
    is_text = min(start.translate(None, delete=b"\t\n\f\r\x1b"), default=32) >= 32
    return RequestError(
        f"{label} is a text file." if is_text else f"{label} is not an image.",
        "Give a PDF, or a JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or JPEG 2000 file.",
    )


def _is_heif(file: BinaryIO) -> bool:
    """Whether the file's brands are those of HEVC in HEIF (ISO/IEC 23008-12), or its own alone."""
    file.seek(0)
    start = file.read(64)
    file.seek(0)
    size = int.from_bytes(start[:4], "big")
    brands = [start[at : at + 4] for at in (8, *range(16, min(size, 64), 4))]
    return (
        start[4:8] == b"ftyp"
        and any(brand in _HEIF_BRANDS for brand in brands)
        and not any(brand in (b"avif", b"avis") for brand in brands)
    )


def _register_heif() -> None:
    """Lets Pillow open HEIC files, where the extra `heif` is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        pass


@contextmanager
def _refuse_damage(label: str) -> Iterator[None]:
    """Turn what Pillow raises on damaged or unusual data into a RequestError."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise RequestError(f"{label} is too large: {error}.", "Make it smaller.") from None
    except MemoryError:
        raise CapacityError(
            f"{label} does not fit into memory once decoded.", "Make it smaller."
        ) from None
    except _DAMAGE as error:
        raise RequestError(
            f"{label} is damaged or incomplete: {_reason(error)}.",
            "Open it and save it again.",
        ) from None


def _reason(error: BaseException) -> str:
    """What a decoder says, to stand within a sentence."""
    return str(error).rstrip(".") or type(error).__name__


def _upright(image: Image.Image, *, in_place: bool) -> Image.Image:
    """Apply the EXIF orientation to a loaded image; in place saves a copy of a large one."""
    try:
        if in_place:
            ImageOps.exif_transpose(image, in_place=True)
            return image
        return ImageOps.exif_transpose(image)
    except _DAMAGE:
        # The pixels are sound; viewers show such a picture as it is stored, and so do we.
        return image if in_place else image.copy()


def _to_rgb(image: Image.Image, background: Background) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_to_8_bits(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if background is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            colour = choose_background(image) if background == "auto" else background
            if colour is None:
                return image.convert("RGB")
            ground = Image.new("RGB", image.size, colour)
            ground.paste(image, mask=alpha)
            return ground
    return image.convert("RGB")


def _deep_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a picture of 16-bit, 32-bit or float samples to 8-bit grey.

    The scale is the smallest usual one that holds all samples: 0..1 (floats), 0..255, 0..65535;
    otherwise the darkest sample becomes black and the lightest white.
    """
    samples = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(_SIXTEEN_TO_EIGHT_BITS[samples])
    values = np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    # Pillow spreads the samples of a deep PPM over 16 bits and opens it as "I".
    tops = (65535.0,) if image.format == "PPM" else (255.0, 65535.0)
    if image.mode == "F":
        tops = (1.0, *tops)
    for top in tops:
        if low >= 0 and high <= top:
            low, high = 0.0, top
            break
    values -= low
    values *= 255.0
    values /= (high - low) or 1.0
    return Image.fromarray(np.floor(values + 0.5).astype(np.uint8))


# 65535 is 255 * 257: with the nearest of 256 levels, 8-bit pictures stored in 16 bits come back.
_SIXTEEN_TO_EIGHT_BITS: Final = ((np.arange(65536) + 128) // 257).astype(np.uint8)
