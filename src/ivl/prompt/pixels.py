"""From an image file to the pixels of its tiles.

`load_image` turns whatever a person has into upright 8-bit RGB, or says what is wrong with it;
`cut_tiles` resizes and cuts as InternVL's `dynamic_preprocess` does, byte for byte.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ivl.errors import CapacityError, RequestError
from ivl.lfs_pointer import is_lfs_pointer, lfs_complaint
from ivl.paths import local_path
from ivl.prompt.arrays import image_of_array, is_tensor
from ivl.prompt.background import choose_background
from ivl.prompt.tiles import Grid, num_tiles_with_thumbnail, tile_grid

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]
Background: TypeAlias = tuple[int, int, int] | Literal["auto"] | None

# Mean and standard deviation of R, G and B in 0..1, with which the towers were trained.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

# The largest phone cameras take 200 megapixels; decoded, that is 0.8 GB.
DEFAULT_MAX_PIXELS: Final = 200_000_000

# A context of 32768 tokens holds 128 tiles; a page has at least one.
DEFAULT_MOST_PAGES: Final = 128

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


def load_image(
    source: ImageSource,
    *,
    frame: int | None = 0,
    background: Background = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    limit_option: str | None = None,
) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    source: a path, the bytes of a file, an open binary file, an image of Pillow's (the picture
        that it shows now, its current frame; it is left as it is), or a NumPy array (see
        `image_of_array`).
    frame: which page of a file with several, from 0; None refuses such a file, so that none of
        its pages goes unseen. `load_pages` reads them all.
    background: the colour that shows through transparent pixels. "auto" is white, unless what is
        drawn would not show on it, as white letters do not (see `choose_background`). The official
        code drops the alpha channel, so that black text on a transparent ground becomes black on
        black; None does the same. An image without a transparent pixel comes out alike each way.
    max_pixels: larger images are refused from their header, before they are decoded.
    limit_option: what the caller's own callers can raise that limit by, for the hint.

    The orientation in EXIF is applied, a damaged EXIF block ignored. Pictures of 16 or 32 bits
    a pixel, or of floats, are scaled to 8 bits (Pillow's own conversion would clip them).
    Raises RequestError for everything that is not a readable image, CapacityError when memory
    runs out while decoding.
    """
    limit = _Limit(max_pixels, limit_option)
    if isinstance(source, Image.Image):
        return _load_pillow(source, background, limit)
    if _is_array(source):
        return _load_pillow(image_of_array(source), background, limit)
    label = _label(source)
    with _open_file(source, label) as file:
        with _refuse_damage(label):
            image = _open_header(file, label, limit)
            pages = _pages(image)
            if frame is None and len(pages) > 1:
                raise RequestError(
                    f"{label} has {len(pages)} pages, and one picture is wanted",
                    "save the page that you mean as a file of its own",
                )
            _seek_page(image, pages, frame or 0, label)
            _check_size(image, label, limit)
            image.load()
        return _to_rgb(_upright(image, in_place=True), background)


def load_pages(
    source: ImageSource,
    *,
    background: Background = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    most: int = DEFAULT_MOST_PAGES,
    limit_option: str | None = None,
) -> list[Image.Image]:
    """All pages of a source, each as `load_image` reads it: the pictures of a TIFF with several,
    the frames of an animation; one for everything else.

    RequestError, before anything is decoded, for more than `most` pages, and for pages that have
    more than `max_pixels` together. Other arguments and errors as in `load_image`.
    """
    if isinstance(source, Image.Image) or _is_array(source):
        options: dict[str, Any] = {"max_pixels": max_pixels, "limit_option": limit_option}
        return [load_image(source, background=background, **options)]
    label, limit = _label(source), _Limit(max_pixels, limit_option)
    with _open_file(source, label) as file, _refuse_damage(label):
        image = _open_header(file, label, limit)
        pages = _pages(image)
        if len(pages) > most:
            raise RequestError(
                f"{label} has {len(pages)} pages; at most {most} are looked at together",
                "save those that you mean as files of their own",
            )
        num_pixels = 0
        for page in range(len(pages)):
            _seek_page(image, pages, page, label)
            _check_size(image, label, limit)
            num_pixels += image.width * image.height
        if num_pixels > max_pixels:
            raise limit.exceeded(label, f" ({len(pages)} pages together)")
        return [
            _to_rgb(_upright(_decoded(image, pages, page, label), in_place=True), background)
            for page in range(len(pages))
        ]


def rereadable(source: Any) -> Any:
    """What can be opened several times in the place of what cannot: the bytes of a pipe."""
    if isinstance(source, (str, os.PathLike)):
        path = local_path(source)
        try:
            return path.read_bytes() if path.is_fifo() else source
        except (OSError, ValueError):
            return source  # what is wrong with it is told when it is opened
    if hasattr(source, "read") and not isinstance(source, Image.Image):
        with _open_file(source, "the image") as file:
            if file is source:
                return source
            file.seek(0)
            return file.read()
    return source


def num_frames(
    source: ImageSource,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    limit_option: str | None = None,
) -> int:
    """How many pages (pictures, frames of an animation) there are. Errors as in `load_image`.

    A photo of a phone that carries its depth or gain map as a further picture counts as one, and
    so does a drawing with layers; smaller versions of a page in a TIFF do not count. An image of
    Pillow's is the one picture that it shows now.
    """
    if isinstance(source, Image.Image) or _is_array(source):
        return 1
    label = _label(source)
    with _open_file(source, label) as file, _refuse_damage(label):
        return len(_pages(_open_header(file, label, _Limit(max_pixels, limit_option))))


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


def check_max_pixels(given: object) -> None:
    """RequestError for what is no number of pixels."""
    if not isinstance(given, Integral) or isinstance(given, bool) or given < 1:
        raise RequestError(f"`max_pixels` is {given!r}.", "Give a number of pixels, 1 or more.")


@dataclass(frozen=True, slots=True)
class _Limit:
    """The most pixels, and what raises it."""

    max_pixels: int
    option: str | None = None

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)

    def exceeded(self, label: str, size: str) -> RequestError:
        more = f", or raise `{self.option}` if you trust the file" if self.option else ""
        return RequestError(
            f"{label} has more than {self.max_pixels / 1e6:g} megapixels{size}",
            f"make it smaller{more}",
        )


def _is_array(source: object) -> bool:
    return hasattr(source, "__array_interface__") or is_tensor(source)


def _load_pillow(source: Image.Image, background: Background, limit: _Limit) -> Image.Image:
    if _is_closed(source):
        raise RequestError(
            "the image of Pillow's is closed", "use it inside its `with` block, or give a `.copy()`"
        )
    _check_size(source, "the image", limit)
    with _refuse_damage("the image"):
        source.load()
    image = _upright(source, in_place=False)
    image.format = source.format
    return _to_rgb(image, background)


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


def _seek_page(image: Image.Image, pages: list[int], page: int, label: str) -> None:
    if not 0 <= page < len(pages):
        raise RequestError(
            f"{label} has no frame {page}", f"it has {len(pages)}, and the first is number 0"
        )
    if image.tell() != pages[page]:
        image.seek(pages[page])


def _decoded(image: Image.Image, pages: list[int], page: int, label: str) -> Image.Image:
    """A page as an image of its own, with what tells how it is to be shown."""
    _seek_page(image, pages, page, label)
    image.load()
    copy = image.copy()
    copy.format = image.format
    return copy


def _label(source: object) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else "the image"


@contextmanager
def _open_file(source: Any, label: str) -> Iterator[BinaryIO]:
    """The source as a seekable binary file that is not empty; closed if it was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        file: BinaryIO = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        file = _open_path(source, label)
    elif hasattr(source, "read"):
        file = source
    else:
        raise RequestError(
            f"an image cannot be read from a {type(source).__name__}",
            "give a path, bytes, an open binary file, a PIL image or a NumPy array",
        )
    try:
        yield _seekable(file, label)
    finally:
        if file is not source:
            file.close()


def _open_path(path: str | os.PathLike[str], label: str) -> BinaryIO:
    if isinstance(path, str) and path.startswith(("http://", "https://", "data:")):
        raise RequestError(
            f"{label[:60]} is an address, not a file", "download it and give the path of the file"
        )
    if not os.fspath(path):
        raise RequestError("the name of the image is empty", "give the path of a file")
    try:
        return local_path(path).open("rb")
    except FileNotFoundError:
        hint = "check the spelling and the directory"
        raise RequestError(f"there is no file {label}", hint) from None
    except IsADirectoryError:
        raise RequestError(f"{label} is a directory", "give the image files in it") from None
    except PermissionError:
        raise RequestError(f"{label} may not be read", "check its permissions") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        is_data = len(label) > 255 and "/" not in label[:4]
        raise RequestError(
            f"{label[:60]!r} cannot be opened: {reason}",
            "is it base64? give the bytes: base64.b64decode(...)" if is_data else "",
        ) from None


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


def _open_header(file: BinaryIO, label: str, limit: _Limit) -> Image.Image:
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
            raise limit.exceeded(label, "") from None
        except UnidentifiedImageError:
            raise _not_an_image(file, label) from None
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def _not_an_image(file: BinaryIO, label: str) -> RequestError:
    file.seek(0)
    start = file.read(512)
    if start.startswith(b"%PDF"):
        return RequestError(f"{label} is a PDF, not an image", "save its pages as images first")
    if is_lfs_pointer(start):
        return RequestError(*lfs_complaint(label))
    if _is_heif(file):
        if "HEIF" in Image.OPEN:
            return RequestError(
                f"{label} is a damaged HEIC image", "save it again, or send it anew"
            )
        return RequestError(
            f"{label} is a HEIC image",
            "`pip install 'ivl[heif]'` lets ivl read it; or save it as JPEG or PNG",
        )
    if b"<svg" in start:
        return RequestError(f"{label} is an SVG drawing", "export it as PNG")
    is_text = min(start.translate(None, delete=b"\t\n\f\r\x1b"), default=32) >= 32
    whose = "the file" if label == "the image" else label
    return RequestError(
        f"{label} is a text file" if is_text else f"{whose} is not an image",
        "give a JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or JPEG 2000 file",
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


def _check_size(image: Image.Image, label: str, limit: _Limit) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise RequestError(f"{label} has no pixels ({width} x {height})")
    if width * height > limit.max_pixels:
        raise limit.exceeded(label, f" ({width} x {height})")


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
