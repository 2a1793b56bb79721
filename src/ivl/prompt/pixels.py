"""From an image file to the pixels of its tiles.

`load_image` turns whatever a person has into upright 8-bit RGB, or says what is wrong with it;
`cut_tiles` resizes and cuts as InternVL's `dynamic_preprocess` does, byte for byte.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ivl.errors import CapacityError, RequestError
from ivl.prompt.tiles import Grid, num_tiles_with_thumbnail, tile_grid

ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image

# Mean and standard deviation of R, G and B in 0..1, with which the towers were trained.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

WHITE: Final = (255, 255, 255)

# The largest phone cameras take 200 megapixels; decoded, that is 0.8 GB.
DEFAULT_MAX_PIXELS: Final = 200_000_000

# Raster formats only: others of Pillow's start a program (EPS) or hold no picture that it can
# decode. HEIF is there when the caller has registered a plugin for it.
_FORMATS: Final = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JPEG2000", "PPM"),
    *("TGA", "ICO", "ICNS", "PCX", "SGI", "QOI", "PSD", "DDS", "XBM", "XPM"),
)

# What Pillow's decoders raise on damaged data, found by feeding them damaged files.
_DAMAGE: Final = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError),
    *(AttributeError, RuntimeError, struct.error, zlib.error),
)

# Opening changes Pillow's own limit for a moment, which is global.
_open_lock = threading.Lock()


def load_image(
    source: ImageSource,
    *,
    frame: int = 0,
    background: tuple[int, int, int] | None = WHITE,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    source: a path, the bytes of a file, an open binary file, or an image of Pillow's (which is
        left as it is).
    frame: which picture of an animation or of a file with several pages, from 0.
    background: the colour that shows through transparent pixels. The official code drops the
        alpha channel, so that black text on a transparent ground becomes black on black; None
        does the same. An image without a transparent pixel comes out alike either way.
    max_pixels: larger images are refused from their header, before they are decoded.

    The orientation in EXIF is applied, a damaged EXIF block ignored. Pictures of 16 or 32 bits
    a pixel, or of floats, are scaled to 8 bits (Pillow's own conversion would clip them).
    Raises RequestError for everything that is not a readable image, CapacityError when memory
    runs out while decoding.
    """
    if isinstance(source, Image.Image):
        _check_size(source, "the image", max_pixels)
        with _refuse_damage("the image"):
            source.load()
        image = _upright(source, in_place=False)
        image.format = source.format
        return _to_rgb(image, background)
    label = _label(source)
    with _open_file(source, label) as file:
        with _refuse_damage(label):
            image = _open_header(file, label, max_pixels)
            _seek_frame(image, frame, label)
            _check_size(image, label, max_pixels)
            image.load()
        return _to_rgb(_upright(image, in_place=True), background)


def num_frames(source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> int:
    """How many pictures (pages, frames of an animation) there are. Errors as in `load_image`.

    A photo of a phone that carries its depth or gain map as a further picture counts as one.
    """
    if isinstance(source, Image.Image):
        return getattr(source, "n_frames", 1)
    label = _label(source)
    with _open_file(source, label) as file, _refuse_damage(label):
        image = _open_header(file, label, max_pixels)
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def cut_tiles(
    image: Image.Image,
    *,
    tile_px: int = 448,
    max_tiles: int = 12,
    min_tiles: int = 1,
    use_thumbnail: bool = True,
    grid: Grid | None = None,
) -> NDArray[np.uint8]:
    """The tiles of an image: uint8 (n, tile_px, tile_px, 3), row by row, then the thumbnail.

    The image is stretched (bicubic) to the grid, which `tile_grid` chooses unless it is given.
    A thumbnail of the whole follows a grid of more than one tile. Only the stretched image and
    the result are held beside the image itself. Errors as in `tile_grid`.
    """
    if image.mode != "RGB":
        image = load_image(image)
    if grid is None:
        grid = tile_grid(*image.size, max_tiles=max_tiles, min_tiles=min_tiles, tile_px=tile_px)
    num_tiles = num_tiles_with_thumbnail(grid, use_thumbnail)
    tiles = np.empty((num_tiles, tile_px, tile_px, 3), dtype=np.uint8)
    stretched = image.resize(
        (grid.columns * tile_px, grid.rows * tile_px), Image.Resampling.BICUBIC
    )
    for index in range(grid.num_tiles):
        row, column = divmod(index, grid.columns)
        left, top = column * tile_px, row * tile_px
        tiles[index] = np.asarray(stretched.crop((left, top, left + tile_px, top + tile_px)))
    if num_tiles > grid.num_tiles:
        tiles[-1] = np.asarray(image.resize((tile_px, tile_px), Image.Resampling.BICUBIC))
    return tiles


def _label(source: str | Path | bytes | BinaryIO) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the image"


@contextmanager
def _open_file(source: str | Path | bytes | BinaryIO, label: str) -> Iterator[BinaryIO]:
    """The source as a seekable binary file that is not empty; closed if it was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        file: BinaryIO = io.BytesIO(source)
    elif isinstance(source, (str, Path)):
        file = _open_path(source, label)
    elif hasattr(source, "read"):
        file = source
    else:
        raise RequestError(
            f"an image cannot be read from a {type(source).__name__}",
            "give a path, bytes, an open binary file or a PIL image",
        )
    try:
        yield _seekable(file, label)
    finally:
        if file is not source:
            file.close()


def _open_path(path: str | Path, label: str) -> BinaryIO:
    if isinstance(path, str) and path.startswith(("http://", "https://", "data:")):
        raise RequestError(
            f"{label[:60]} is an address, not a file", "download it and give the path of the file"
        )
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        hint = "check the spelling and the directory"
        raise RequestError(f"there is no file {label}", hint) from None
    except IsADirectoryError:
        raise RequestError(f"{label} is a directory", "give the image files in it") from None
    except PermissionError:
        raise RequestError(f"{label} may not be read", "check its permissions") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{label[:200]!r} cannot be opened: {error}") from None


def _seekable(file: BinaryIO, label: str) -> BinaryIO:
    """Pillow jumps about in a file, so a pipe is read to its end first."""
    try:
        if not file.seekable():
            file = io.BytesIO(file.read())
        file.seek(0)
        first = file.read(1)
    except (OSError, ValueError) as error:
        raise RequestError(f"{label} cannot be read: {error}") from None
    if isinstance(first, str):
        raise RequestError(f"{label} is open as text", 'open it in binary mode ("rb")')
    if not first:
        raise RequestError(f"{label} is empty (0 bytes)", "check that it was saved completely")
    return file


def _open_header(file: BinaryIO, label: str, max_pixels: int) -> Image.Image:
    """Read the header and no more, with `max_pixels` in the place of Pillow's own limit."""
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _open_lock, warnings.catch_warnings():
        pillow_limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        warnings.simplefilter("ignore")
        try:
            return Image.open(file, formats=formats)
        except Image.DecompressionBombError:
            raise _too_large(label, "", max_pixels) from None
        except UnidentifiedImageError:
            raise _not_an_image(file, label) from None
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def _not_an_image(file: BinaryIO, label: str) -> RequestError:
    file.seek(0)
    start = file.read(512)
    if start.startswith(b"%PDF"):
        return RequestError(f"{label} is a PDF, not an image", "save its pages as images first")
    if start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return RequestError(f"{label} is a HEIC image", "save it as JPEG or PNG")
    if b"<svg" in start:
        return RequestError(f"{label} is an SVG drawing", "export it as PNG")
    is_text = min(start.translate(None, delete=b"\t\n\f\r\x1b"), default=32) >= 32
    return RequestError(
        f"{label} is {'a text file' if is_text else 'not an image'}",
        "give a JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or JPEG 2000 file",
    )


def _seek_frame(image: Image.Image, frame: int, label: str) -> None:
    if frame == 0:
        return
    count = getattr(image, "n_frames", 1)
    if not 0 <= frame < count:
        raise RequestError(
            f"{label} has no frame {frame}", f"it has {count}, and the first is number 0"
        )
    image.seek(frame)


def _check_size(image: Image.Image, label: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise RequestError(f"{label} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise _too_large(label, f" ({width} x {height})", max_pixels)


def _too_large(label: str, size: str, max_pixels: int) -> RequestError:
    return RequestError(
        f"{label} has more than {max_pixels / 1e6:g} megapixels{size}",
        "make it smaller, or raise the limit of pixels if you trust the file",
    )


@contextmanager
def _refuse_damage(label: str) -> Iterator[None]:
    """Turn what Pillow raises on damaged or unusual data into a RequestError."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise RequestError(f"{label} is too large: {error}", "make it smaller") from None
    except MemoryError:
        raise CapacityError(
            f"{label} does not fit into memory once decoded", "make it smaller"
        ) from None
    except _DAMAGE as error:
        raise RequestError(
            f"{label} is damaged or incomplete: {error}", "open and save it again, or send it anew"
        ) from None


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


def _to_rgb(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
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
            ground = Image.new("RGB", image.size, background)
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
