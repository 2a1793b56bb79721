"""Pages of PDF files, drawn by PDFium."""

from __future__ import annotations

import io
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

from PIL import Image

from ivl.errors import CapacityError, RequestError
from ivl.pages.sources import PixelLimit, page_label

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

PAGE_PIXELS: Final = 24 * 448 * 448
MOST_DPI: Final = 300
POINTS_PER_INCH: Final = 72

# Where readers look for the header: at the beginning of a line, for printers put lines before it.
_HEADER_BYTES: Final = 1024
_HEADER: Final = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n\0])[ \t]*%PDF-")

# What the trailer of an encrypted file names (ISO 32000-1, 7.6.1).
_ENCRYPTED: Final = b"/Encrypt"

# The longest page that the format allows has 60,000 at 300 dots an inch; a JPEG has no more.
_LONGEST_SIDE_PX: Final = 65_500

# PDFium may be used by one thread at a time.
_pdfium_lock = threading.Lock()
_silence = logging.NullHandler()


def is_pdf(file: BinaryIO) -> bool:
    """Whether a file says that it is one. It is left at its beginning."""
    file.seek(0)
    start = file.read(_HEADER_BYTES)
    file.seek(0)
    return _HEADER.search(start) is not None


class PdfFile:
    """An open PDF with at least one page. Use it in the block of `open_pdf` alone.

    A page is drawn with as many pixels as 24 tiles of 448 have (A4 with 222 dots an inch), so that
    every grid of up to 24 tiles is cut from real pixels and a larger one from nearly so; but with
    at most 300 dots an inch, which is what is printed, and with `max_pixels` where that is less.
    """

    def __init__(self, document: PdfDocument, label: str, limit: PixelLimit) -> None:
        self.num_pages = len(document)
        self._document, self._label, self._limit = document, label, limit

    def size_px(self, page: int) -> tuple[int, int]:
        """Width and height with which page `page`, from 0, is drawn; RequestError where it has no
        usable size."""
        label = page_label(self._label, page + 1, self.num_pages)
        with _refuse_damage(label):
            width, height = self._document.get_page_size(page)
        scale = self._scale(width, height, label)
        return _drawn_size(width, height, scale)

    def num_pixels(self, page: int) -> int:
        width, height = self.size_px(page)
        return width * height

    def load(self, page: int) -> Image.Image:
        """Page `page`, from 0, as RGB."""
        label = page_label(self._label, page + 1, self.num_pages)
        with _refuse_damage(label):
            opened: PdfPage = self._document[page]
            try:
                scale = self._scale(*opened.get_size(), label)
                bitmap = opened.render(scale=scale)  # pyright: ignore[reportArgumentType]
                try:
                    return bitmap.to_pil().convert("RGB")  # a copy: the bitmap's memory is PDFium's
                finally:
                    bitmap.close()
            finally:
                opened.close()

    def _scale(self, width: float, height: float, label: str) -> float:
        """Pixels a point, which is 1/72 inch."""
        if not (0 < width < 1e5 and 0 < height < 1e5):
            raise RequestError(
                f"{label} has no usable size ({width:g} x {height:g} points).",
                "Print it to a new PDF.",
            )
        most = min(PAGE_PIXELS, self._limit.max_pixels)
        scale = min((most / (width * height)) ** 0.5, MOST_DPI / POINTS_PER_INCH)
        # A side of less than a pixel cannot be drawn.
        scale = max(scale, 1 / min(width, height))
        if max(width, height) * scale > _LONGEST_SIDE_PX:
            raise RequestError(
                f"{label} is far too narrow ({width:g} x {height:g} points).",
                "Print it to a new PDF.",
            )
        return scale


@contextmanager
def open_pdf(file: BinaryIO, label: str, limit: PixelLimit) -> Iterator[PdfFile]:
    """Opens a PDF, which is closed at the end of the block; no other is open meanwhile.

    RequestError for a file that needs a password, is damaged or has no pages. PDFium keeps the
    reason of an earlier failure where a later one has none of its own, so that only an encrypted
    file is taken to need a password.
    """
    with _pdfium_lock:
        import pypdfium2

        # Of forms that it cannot draw it would tell the terminal.
        logging.getLogger("pypdfium2").addHandler(_silence)
        try:
            document = pypdfium2.PdfDocument(_readable(file))
        except pypdfium2.PdfiumError as error:
            file.seek(0)
            if "password" in str(error).lower() and _ENCRYPTED in file.read():
                raise RequestError(f"{label} needs a password.", "Save it without one.") from None
            raise RequestError(
                f"{label} is a PDF that has no pages, is damaged or incomplete.",
                "Save it again.",
            ) from None
        try:
            with _refuse_damage(label):
                document.init_forms()  # without it, what a form was filled in with is not drawn
            yield PdfFile(document, label, limit)
        finally:
            document.close()


def _readable(file: BinaryIO) -> BinaryIO:
    """PDFium's reader fills memory of its own, which not everything that can be read does."""
    return file if hasattr(file, "readinto") else io.BytesIO(file.read())


def _drawn_size(width: float, height: float, scale: float) -> tuple[int, int]:
    """As `PdfPage.render` rounds it."""
    return -int(-width * scale // 1), -int(-height * scale // 1)


@contextmanager
def _refuse_damage(label: str) -> Iterator[None]:
    import pypdfium2

    try:
        yield
    except pypdfium2.PdfiumError:
        raise RequestError(
            f"{label} is damaged and cannot be drawn.", "Save the PDF again."
        ) from None
    except MemoryError:
        raise CapacityError(f"{label} does not fit into memory.", "Free some memory.") from None
