"""What pages come from: paths, bytes and open files, and how large a picture may be."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import BinaryIO, Final, TypeVar, cast

from ivl.errors import RequestError
from ivl.paths import local_path

# The largest phone cameras take 200 megapixels; decoded, that is 0.8 GB.
DEFAULT_MAX_PIXELS: Final = 200_000_000

NAMELESS: Final = "The file"
Source = TypeVar("Source")


def check_max_pixels(given: object) -> None:
    """RequestError for what is no number of pixels."""
    if not isinstance(given, Integral) or isinstance(given, bool) or given < 1:
        raise RequestError(f"`max_pixels` is {given!r}.", "Give a number of pixels, 1 or more.")


@dataclass(frozen=True, slots=True)
class PixelLimit:
    """The most pixels, and what raises it."""

    max_pixels: int
    option: str | None = None

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)

    def check(self, size_px: tuple[int, int], label: str) -> None:
        """RequestError for a picture that has more, or none."""
        width, height = size_px
        if width < 1 or height < 1:
            raise RequestError(f"{label} has no pixels ({width} x {height}).")
        if width * height > self.max_pixels:
            raise self.exceeded(label, f" ({width} x {height})")

    def exceeded(self, label: str, size: str = "") -> RequestError:
        more = f", or raise `{self.option}` if you trust the file" if self.option else ""
        return RequestError(
            f"{label} has more than {self.max_pixels / 1e6:g} megapixels{size}.",
            f"Make it smaller{more}.",
        )


def page_label(label: str, page: int, num_pages: int) -> str:
    """What a page of a file is called, from 1; a file of one page has its name alone."""
    return f"{label}, page {page} of {num_pages}" if num_pages > 1 else label


def label_of(source: object) -> str:
    """What a source is called in messages."""
    return str(source) if isinstance(source, (str, os.PathLike)) else NAMELESS


@contextmanager
def open_file(source: object, label: str) -> Iterator[BinaryIO]:
    """The source as a seekable binary file that is not empty; closed if it was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        file: BinaryIO = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        file = _open_path(source, label)
    elif hasattr(source, "read"):
        file = cast(BinaryIO, source)
    else:
        raise RequestError(
            f"An image cannot be read from a {type(source).__name__}.",
            "Give a path, bytes, an open binary file, a PIL image or a NumPy array.",
        )
    try:
        yield _seekable(file, label)
    finally:
        if file is not source:
            file.close()


def rereadable(source: Source) -> Source | bytes:
    """What can be opened several times in the place of what cannot: the bytes of a pipe."""
    if isinstance(source, (str, os.PathLike)):
        path = local_path(source)
        try:
            return path.read_bytes() if path.is_fifo() else source
        except (OSError, ValueError):
            return source  # what is wrong with it is told when it is opened
    if hasattr(source, "read"):
        with open_file(source, NAMELESS) as file:
            if file is source:
                return source
            file.seek(0)
            return file.read()
    return source


def _open_path(path: str | os.PathLike[str], label: str) -> BinaryIO:
    if isinstance(path, str) and path.startswith(("http://", "https://", "data:")):
        raise RequestError(
            f"{label[:60]} is an address, not a file.", "Download it and give the path of the file."
        )
    if not os.fspath(path):
        raise RequestError("The name of the image is empty.", "Give the path of a file.")
    try:
        return local_path(path).open("rb")
    except FileNotFoundError:
        hint = "Check the spelling and the directory."
        raise RequestError(f"There is no file {label}.", hint) from None
    except IsADirectoryError:
        raise RequestError(f"{label} is a directory.", "Give the image files in it.") from None
    except PermissionError:
        raise RequestError(
            f"{label} cannot be read: permission denied.", "Check its permissions."
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        is_data = len(label) > 255 and "/" not in label[:4]
        raise RequestError(
            f"{label[:60]!r} cannot be opened: {reason}.",
            "Is it base64? Give the bytes: base64.b64decode(...)." if is_data else "",
        ) from None


def _seekable(file: BinaryIO, label: str) -> BinaryIO:
    """Decoders jump about in a file, so a pipe is read to its end first."""
    try:
        if not file.seekable():
            file = io.BytesIO(file.read())
        file.seek(0)
        first = file.read(1)
    except (OSError, ValueError) as error:
        raise RequestError(f"{label} cannot be read: {error}.") from None
    if isinstance(first, str):
        raise RequestError(f"{label} is open as text.", 'Open it in binary mode ("rb").')
    if not first:
        raise RequestError(f"{label} is empty (0 bytes).", "Check that it was saved completely.")
    return file
