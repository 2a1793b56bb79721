"""Documents of PDFium's: opened, drawn, and asked for their text.

What is damaged or made to do harm can make PDFium crash, or compute for years. So all of this runs
in a process of its own (`pdf_worker`), one thing at a time.
"""

from __future__ import annotations

import ctypes
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

from ivl.errors import CapacityError, LockedError, RequestError
from ivl.pages.pdf_repair import with_new_page_tree
from ivl.pages.sources import PixelLimit, page_label
from ivl.pages.text_layer import TextLayer, text_layer_of

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

PAGE_PIXELS: Final = 24 * 448 * 448
MOST_DPI: Final = 300
POINTS_PER_INCH: Final = 72

# The longest page that the format allows has 60,000 at 300 dots an inch; a JPEG has no more.
_LONGEST_SIDE_PX: Final = 65_500

# What is repaired is in memory twice.
_MOST_REPAIRED_BYTES: Final = 256 << 20

_silence = logging.NullHandler()


class OpenDocument:
    """A document of PDFium's, open, with at least one page that can be found.

    password: the bytes that opened it. num_pages: those that are there, and one more, which cannot
    be drawn, where the file says that it has others behind them, or where it is_repaired: there its
    own page tree leads nowhere, and the pages are those that lie in it. num_claimed: how many it
    says that it has. num_attachments: of files that it carries, which are not opened.
    """

    def __init__(
        self, file: BinaryIO, label: str, passwords: Sequence[bytes], *, can_unlock: bool = True
    ) -> None:
        """The file has to stay open as long as the document. RequestError for a file that is
        damaged or has no pages, LockedError where no password opens it: they are tried in their
        order. can_unlock: whether others can be given."""
        # Of forms that it cannot draw it would tell the terminal.
        logging.getLogger("pypdfium2").addHandler(_silence)
        self.is_repaired = False
        if not self._open(file, label, passwords, can_unlock=can_unlock):
            repaired = _repaired(file)
            if repaired is None or not self._open(repaired, label, passwords, can_unlock=False):
                raise RequestError(
                    f"{label} is a PDF that has no pages, is damaged or incomplete.",
                    "Save it again.",
                )
            self.is_repaired = True
            self.num_pages += self.num_pages == self.num_claimed

    def _open(
        self, file: BinaryIO, label: str, passwords: Sequence[bytes], *, can_unlock: bool
    ) -> bool:
        """Whether there is a page."""
        import pypdfium2

        loaded = _load(file, label, passwords, can_unlock=can_unlock)
        if loaded is None:
            return False
        self._document, self.password, self._held = loaded
        try:
            # Without it, what a form was filled in with is not drawn.
            self._document.init_forms()
        except pypdfium2.PdfiumError:
            pass  # a form that PDFium cannot make out; its pages are drawn without
        self.num_claimed = len(self._document)
        found = self._num_found()
        self.num_pages = min(found + 1, self.num_claimed)
        self.num_attachments = max(self._document.count_attachments(), 0)
        if not found:
            self._document.close()
        return found > 0

    def close(self) -> None:
        self._document.close()

    def page(self, index: int) -> PdfPage:
        """PdfiumError for one that is damaged."""
        return self._document[index]

    def size_points(self, index: int) -> tuple[float, float]:
        return self._document.get_page_size(index)

    def label(self, index: int) -> str | None:
        """What the document itself calls a page, where that is something else than its number."""
        called = self._document.get_page_label(index).strip()
        return called if called and called != str(index + 1) else None

    def _num_found(self) -> int:
        """PDFium believes the number that the file says, be it a million for a page: what is not
        there at the end does not count."""
        found = self.num_claimed
        while found > 0 and not self._is_there(found - 1):
            found -= 1
        return found

    def _is_there(self, index: int) -> bool:
        import pypdfium2

        try:
            self._document.get_page_size(index)
        except pypdfium2.PdfiumError:
            return False
        return True


class NamedDocument:
    """An open document under the name `label`, drawn as `PdfFile` says."""

    def __init__(self, document: OpenDocument, label: str, limit: PixelLimit) -> None:
        self.num_pages = document.num_pages
        self._document, self._label, self._limit = document, label, limit

    def size_px(self, page: int) -> tuple[int, int]:
        """Width and height with which page `page`, from 0, is drawn; RequestError where it has no
        usable size."""
        label = self._title(page)
        with self._refuse_damage(page):
            width, height = self._document.size_points(page)
        scale = self._scale(width, height, label)
        return _drawn_size(width, height, scale)

    def labels(self) -> list[str | None]:
        """For every page what the document itself calls it ("iv", "A-3"), or None where it does not
        or calls it by its number."""
        return [self._document.label(page) for page in range(self.num_pages)]

    def draw(self, page: int) -> tuple[tuple[int, int], memoryview]:
        """Page `page`, from 0: its size, and its pixels, of which each is blue, green, red."""
        with self._opened(page) as opened:
            scale = self._scale(*opened.get_size(), self._title(page))
            bitmap = opened.render(scale=scale)  # pyright: ignore[reportArgumentType]
            try:
                # The memory is Python's, and stays when the bitmap is closed.
                return (bitmap.width, bitmap.height), memoryview(bitmap.buffer).cast("B")
            finally:
                bitmap.close()

    def text_layer(self, page: int) -> TextLayer | None:
        """What the file says that page `page`, from 0, says; None where it has no text."""
        with self._opened(page) as opened:
            return text_layer_of(opened)

    @contextmanager
    def _opened(self, page: int) -> Iterator[PdfPage]:
        with self._refuse_damage(page):
            opened = self._document.page(page)
            try:
                yield opened
            finally:
                opened.close()

    def _title(self, page: int) -> str:
        return page_label(self._label, page + 1, self.num_pages)

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
    def _refuse_damage(self, page: int) -> Iterator[None]:
        import pypdfium2

        try:
            yield
        except pypdfium2.PdfiumError:
            label, claimed = self._title(page), self._document.num_claimed
            if page + 1 == self.num_pages and self._document.is_repaired:
                raise RequestError(
                    f"{label} is missing: the file is damaged or incomplete, and no more pages "
                    "were found in it.",
                    "Save the PDF again.",
                ) from None
            if page + 1 == self.num_pages < claimed:
                raise RequestError(
                    f"{label} is missing: the file says that it has {claimed} pages, and has none "
                    "from here on.",
                    "Save the PDF again.",
                ) from None
            raise RequestError(
                f"{label} is damaged and cannot be drawn.", "Save the PDF again."
            ) from None
        except MemoryError:
            raise CapacityError(
                f"{self._title(page)} does not fit into memory.", "Free some memory."
            ) from None


def _load(
    file: BinaryIO, label: str, passwords: Sequence[bytes], *, can_unlock: bool
) -> tuple[PdfDocument, bytes, object] | None:
    """The document, the password that opened it, and what has to live as long; None where PDFium
    can make nothing of the file."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    access = pdfium.FPDF_FILEACCESS()
    access.m_FileLen = file.seek(0, io.SEEK_END)
    access.m_GetBlock = type(access.m_GetBlock)(_reader(file))
    for password in passwords:
        raw = pdfium.FPDF_LoadCustomDocument(access, password or None)
        if raw:
            return pypdfium2.PdfDocument(raw), password, (file, access)
        reason = pdfium.FPDF_GetLastError()
        if reason == pdfium.FPDF_ERR_SECURITY:
            raise RequestError(
                f"{label} is encrypted in a way that PDFium does not know.",
                "Save it without encryption.",
            )
        if reason != pdfium.FPDF_ERR_PASSWORD:
            return None
    if not any(passwords):
        hint = ", or give it with `passwords`" if can_unlock else ""
        raise LockedError(f"{label} needs a password.", f"Save it without one{hint}.")
    raise LockedError(
        f"{label} needs a password, and none of those given opens it.",
        "Give the right one with `passwords`.",
    )


def _reader(file: BinaryIO) -> Callable[[object, int, object, int], int]:
    """What PDFium calls for a part of the file: it is 0 where that cannot be had."""

    def read(_: object, position: int, target: object, size: int) -> int:
        try:
            file.seek(position)
            data = file.read(size)
        except (OSError, ValueError):
            return 0
        if len(data) != size:
            return 0
        ctypes.memmove(target, data, size)  # pyright: ignore[reportArgumentType]
        return 1

    return read


def _repaired(file: BinaryIO) -> BinaryIO | None:
    """The file with a page tree of the pages that lie in it; None where none are seen."""
    if file.seek(0, io.SEEK_END) > _MOST_REPAIRED_BYTES:
        return None
    file.seek(0)
    data = with_new_page_tree(file.read())
    return None if data is None else io.BytesIO(data)


def _drawn_size(width: float, height: float, scale: float) -> tuple[int, int]:
    """As `PdfPage.render` rounds it."""
    return -int(-width * scale // 1), -int(-height * scale // 1)
