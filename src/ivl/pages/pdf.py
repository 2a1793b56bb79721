"""PDF files: told from others, opened with their passwords, and their pages.

PDFium, which draws them, is in a process of its own (`pdf_process`).
"""

from __future__ import annotations

import io
import os
import re
import stat
import unicodedata
import uuid
import weakref
from collections.abc import Sequence
from typing import BinaryIO, Final, cast

from PIL import Image

from ivl.errors import RequestError
from ivl.json_values import JsonObject, JsonValue
from ivl.pages.pdf_process import PdfiumDied, pdf_process
from ivl.pages.pdfium import PAGE_PIXELS as PAGE_PIXELS
from ivl.pages.sources import PixelLimit, page_label
from ivl.pages.text_layer import TextLayer, TextLine

# Where readers look for the header: at the beginning of a line, for printers put lines before it.
_HEADER_BYTES: Final = 1024
_HEADER: Final = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n\0])[ \t]*%PDF-")

# Bytes in which PDFDocEncoding differs from Latin-1 (ISO 32000-1, annex D.3).
_PDF_DOC: Final = {
    ord(character): code
    for code, character in [
        *enumerate("\u02d8\u02c7\u02c6\u02d9\u02dd\u02db\u02da\u02dc", 0x18),
        *enumerate(
            "\u2022\u2020\u2021\u2026\u2014\u2013\u0192\u2044\u2039\u203a\u2212\u2030\u201e\u201c"
            "\u201d\u2018\u2019\u201a\u2122\ufb01\ufb02\u0141\u0152\u0160\u0178\u017d\u0131\u0142"
            "\u0153\u0161\u017e",
            0x80,
        ),
        (0xA0, "\u20ac"),
    ]
}


def is_pdf(file: BinaryIO) -> bool:
    """Whether a file says that it is one. It is left at its beginning."""
    file.seek(0)
    start = file.read(_HEADER_BYTES)
    file.seek(0)
    return _HEADER.search(start) is not None


class PdfOrigin:
    """What the pages of a PDF have in common: while it lives, their document may stay open between
    them. It knows the password that opened it, and does not show it.

    num_attachments: the files that the PDF carries along, which are not opened. fatal: the message
    and the hint of pages that PDFium does not survive, so that none is tried twice.
    """

    __slots__ = ("__weakref__", "fatal", "key", "num_attachments", "password")

    def __init__(self, password: bytes | None = None) -> None:
        self.key = uuid.uuid4().hex
        self.password = password
        self.num_attachments = 0
        self.fatal: dict[int, tuple[str, str]] = {}
        weakref.finalize(self, pdf_process.forget, self.key).atexit = False

    def __reduce__(self) -> tuple[type[PdfOrigin], tuple[bytes | None]]:
        return PdfOrigin, (self.password,)


class PdfFile:
    """A PDF with at least one page, as long as its file is open.

    A page is drawn with as many pixels as 24 tiles of 448 have (A4 with 222 dots an inch), so that
    every grid of up to 24 tiles is cut from real pixels and a larger one from nearly so; but with
    at most 300 dots an inch, which is what is printed, and with `max_pixels` where that is less.
    """

    def __init__(
        self,
        file: BinaryIO,
        label: str,
        limit: PixelLimit,
        passwords: Sequence[str] | None = (),
        origin: PdfOrigin | None = None,
    ) -> None:
        """RequestError for a file that is damaged or has no pages, LockedError for one that none of
        the passwords opens (None: none can be given); the empty one is always tried. origin: with
        what the file was opened before, so that it need not be opened anew."""
        self._file, self._label, self._limit = file, label, limit
        self._path, self._version = _place(file)
        self.origin = origin or PdfOrigin()
        self._can_unlock = passwords is not None
        self._passwords = (
            _candidates(passwords or ()) if self.origin.password is None else [self.origin.password]
        )
        opened, _ = self._ask("open", label)
        self.num_pages = cast(int, opened["num_pages"])
        self.origin.num_attachments = cast(int, opened["num_attachments"])
        self.origin.password = bytes.fromhex(cast(str, opened["password"]))
        self._passwords = [self.origin.password]

    def size_px(self, page: int) -> tuple[int, int]:
        """Width and height with which page `page`, from 0, is drawn; RequestError where it has no
        usable size."""
        answer, _ = self._ask("size", self._title(page), page)
        width, height = cast("list[int]", answer["size"])
        return width, height

    def num_pixels(self, page: int) -> int:
        width, height = self.size_px(page)
        return width * height

    def labels(self) -> list[str | None]:
        """What the document itself calls its pages ("iv", "A-3"); None where that is nothing, or
        the number of the page."""
        answer, _ = self._ask("labels", self._label)
        return cast("list[str | None]", answer["labels"])

    def load(self, page: int) -> Image.Image:
        """Page `page`, from 0, as RGB. RequestError where it is damaged, or PDFium cannot draw it
        in a minute and in 0.9 GB of memory."""
        answer, pixels = self._ask("draw", self._title(page), page)
        width, height = cast("list[int]", answer["size"])
        return Image.frombuffer("RGB", (width, height), bytes(pixels), "raw", "BGR", 0, 1)

    def text_layer(self, page: int) -> TextLayer | None:
        """What the file says that page `page`, from 0, says; None where it has no text. Errors as
        of `load`."""
        answer, _ = self._ask("text", self._title(page), page)
        layer = cast("JsonObject | None", answer["layer"])
        return None if layer is None else _layer(layer)

    def _ask(self, act: str, title: str, page: int = 0) -> tuple[JsonObject, bytes | memoryview]:
        is_of_page = act in ("draw", "text")
        if is_of_page and page in self.origin.fatal:
            raise RequestError(*self.origin.fatal[page])
        version: list[JsonValue] = [*self._version]
        passwords: list[JsonValue] = [password.hex() for password in self._passwords]
        request: JsonObject = {
            **{"act": act, "page": page, "title": title, "label": self._label},
            **{"key": self.origin.key, "path": self._path, "version": version},
            **{"passwords": passwords, "can_unlock": self._can_unlock},
            **{"max_pixels": int(self._limit.max_pixels), "option": self._limit.option},
            "num_fatal": len(self.origin.fatal),
        }
        try:
            answer, pixels = pdf_process.ask(request)
            if "wants" in answer:
                self._file.seek(0)
                answer, pixels = pdf_process.ask({**request, "path": None}, self._file.read())
        except PdfiumDied as error:
            if is_of_page:
                self.origin.fatal[page] = (error.message, error.hint)
            raise
        return answer, pixels

    def _title(self, page: int) -> str:
        return page_label(self._label, page + 1, self.num_pages)


def _layer(given: JsonObject) -> TextLayer:
    lines = cast("list[dict[str, object]]", given["lines"])
    return TextLayer(
        text=cast(str, given["text"]),
        lines=tuple(
            TextLine(
                text=cast(str, line["text"]),
                box=cast(
                    "tuple[float, float, float, float]", tuple(cast("list[float]", line["box"]))
                ),
            )
            for line in lines
        ),
        hidden_share=cast(float, given["hidden_share"]),
        image_share=cast(float, given["image_share"]),
        num_unmapped=cast(int, given["num_unmapped"]),
    )


def _place(file: BinaryIO) -> tuple[str | None, list[int | str]]:
    """The path by which another process opens the same file, or None; and what changes when the
    file does."""
    try:
        there = os.fstat(file.fileno())
        path = os.path.realpath(cast(str, file.name))
        same = os.path.samestat(os.stat(path), there) and stat.S_ISREG(there.st_mode)
    except (OSError, ValueError, TypeError, AttributeError, io.UnsupportedOperation):
        return None, []
    version: list[int | str] = [there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns]
    return path if same else None, version


def _candidates(passwords: Sequence[str]) -> list[bytes]:
    """What is tried to open a file, the empty password first.

    Each is tried as UTF-8, as it is and normalised (what ISO 32000-2, 7.6.4.3.3, asks for), and in
    the encodings that older files have: PDFDocEncoding and Windows-1252. (PDFium itself turns UTF-8
    into Latin-1 and back.)
    """
    tried: dict[bytes, None] = {b"": None}
    for password in passwords:
        tried[password.encode("utf-8", "replace")] = None
        tried[unicodedata.normalize("NFKC", password).encode("utf-8", "replace")] = None
        for text, encoding in ((password.translate(_PDF_DOC), "latin-1"), (password, "cp1252")):
            try:
                tried[text.encode(encoding)] = None
            except UnicodeEncodeError:
                pass
    return [password for password in tried if b"\0" not in password]
