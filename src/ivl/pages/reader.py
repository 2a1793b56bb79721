"""The one reader of images and documents.

    open_pages("report.pdf")[2].load()      the third page, upright RGB
    load_image("photo.heic")                a picture, or the first page of several

A page of a PDF is drawn when it is wanted, with as many pixels as `PdfFile` says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, TypeAlias

from numpy.typing import NDArray
from PIL import Image

from ivl.errors import IvlError, RequestError
from ivl.pages.images import Background, HeldImage, ImageFile, image_of_array, is_tensor
from ivl.pages.pdf import PdfFile, PdfOrigin, is_pdf
from ivl.pages.sources import (
    DEFAULT_MAX_PIXELS,
    PixelLimit,
    label_of,
    open_file,
    page_label,
    rereadable,
)
from ivl.pages.text_layer import TextLayer

# A context of 32768 tokens holds 128 tiles; a page has at least one.
DEFAULT_MOST_PAGES: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Page `number`, from 1, of the `count` pages of a file called `name`.

    It holds no picture unless `source` is one, and no file open, but that the PDF whose pages were
    last read may stay open for the next as long as there are some. It can be asked about as an
    image.

    label: what a PDF itself calls the page ("iv", "A-3"); None where it does not, or by its number.
    origin: of a page of a PDF, what it shares with the others.
    """

    name: str
    source: ImageSource
    number: int = 1
    count: int = 1
    label: str | None = None
    origin: PdfOrigin | None = field(default=None, repr=False, compare=False)

    @property
    def title(self) -> str:
        return page_label(self.name, self.number, self.count)

    @property
    def num_attachments(self) -> int:
        """How many files a PDF carries along with its pages (as a portfolio does); none is opened.
        0 for what is no PDF."""
        return 0 if self.origin is None else self.origin.num_attachments

    def load(
        self,
        *,
        background: Background = "auto",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        limit_option: str | None = None,
    ) -> Image.Image:
        """The page as upright RGB. Arguments and errors as of `load_image`."""
        with _opened(self, background, PixelLimit(max_pixels, limit_option)) as file:
            return file.load(self._index_in(file))

    def size_px(self, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
        """Width and height of what `load` gives; a page of a PDF is not drawn for it."""
        with _opened(self, "auto", PixelLimit(max_pixels)) as file:
            return file.size_px(self._index_in(file))

    def text_layer(self) -> TextLayer | None:
        """What the PDF says that the page says: its characters, and not its pixels. None for what
        is no PDF, and for a page without text. Errors as of `load`."""
        with _opened(self, "auto", PixelLimit(DEFAULT_MAX_PIXELS)) as file:
            return file.text_layer(self._index_in(file)) if isinstance(file, PdfFile) else None

    def explain(self, error: IvlError) -> IvlError:
        """The error, with the page named where the file has several and it does not say."""
        if self.count > 1 and self.title not in error.message:
            error.message = f"{self.title}: {error.message}"
        return error

    def _index_in(self, file: _Opened) -> int:
        if file.num_pages < self.number and not isinstance(file, HeldImage):
            raise RequestError(f"{self.name} no longer has a page {self.number}.", "Open it again.")
        return 0 if isinstance(file, HeldImage) else self.number - 1


ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any] | Page
)
_Opened: TypeAlias = HeldImage | ImageFile | PdfFile


def load_image(
    source: ImageSource,
    *,
    frame: int | None = 0,
    background: Background = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    limit_option: str | None = None,
) -> Image.Image:
    """Read an image, or a page of a document, as upright 8-bit RGB.

    source: a path, the bytes of a file, an open binary file, an image of Pillow's (the picture
        that it shows now, its current frame; it is left as it is), a NumPy array (see
        `image_of_array`), or a `Page`. Files are images or PDFs.
    frame: which page of a file with several, from 0; None refuses such a file, so that none of
        its pages goes unseen. `load_pages` reads them all.
    background: the colour that shows through transparent pixels. "auto" is white, unless what is
        drawn would not show on it, as white letters do not (see `choose_background`). The official
        code drops the alpha channel, so that black text on a transparent ground becomes black on
        black; None does the same. An image without a transparent pixel comes out alike each way.
    max_pixels: larger images are refused from their header, before they are decoded; pages of a PDF
        are drawn with no more.
    limit_option: what the caller's own callers can raise that limit by, for the hint.

    The orientation in EXIF is applied, a damaged EXIF block ignored. Pictures of 16 or 32 bits
    a pixel, or of floats, are scaled to 8 bits (Pillow's own conversion would clip them).
    Raises RequestError for everything that is not a readable image, CapacityError when memory
    runs out while decoding.
    """
    if isinstance(source, Page):
        return source.load(background=background, max_pixels=max_pixels, limit_option=limit_option)
    with _opened(source, background, PixelLimit(max_pixels, limit_option)) as file:
        if isinstance(file, HeldImage):
            return file.load(0)
        label = label_of(source)
        if frame is None and file.num_pages > 1:
            raise RequestError(
                f"{label} has {file.num_pages} pages, and one picture is wanted.",
                "Save the page that you mean as a file of its own.",
            )
        if not 0 <= (frame or 0) < file.num_pages:
            raise RequestError(
                f"{label} has no frame {frame}.",
                f"It has {file.num_pages}, and the first is number 0.",
            )
        return file.load(frame or 0)


def load_pages(
    source: ImageSource,
    *,
    background: Background = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    most: int = DEFAULT_MOST_PAGES,
    limit_option: str | None = None,
) -> list[Image.Image]:
    """All pages of a source, each as `load_image` reads it: those of a PDF or a TIFF with several,
    the frames of an animation; one for everything else.

    RequestError, before anything is decoded, for more than `most` pages, and for pictures that have
    more than `max_pixels` together. Other arguments and errors as in `load_image`.
    """
    limit = PixelLimit(max_pixels, limit_option)
    if isinstance(source, Page):
        return [load_image(source, background=background, max_pixels=max_pixels)]
    with _opened(source, background, limit) as file:
        _check_count(file.num_pages, label_of(source), most)
        if not isinstance(file, HeldImage):
            _check_pixels(file, label_of(source), limit)
        return [file.load(page) for page in range(file.num_pages)]


def open_pages(
    source: ImageSource,
    name: str | None = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    limit_option: str | None = None,
    passwords: Sequence[str] = (),
) -> list[Page]:
    """The pages of a source, to be loaded one by one, in what it is called in messages: `name`, or
    its path. Errors as in `load_image`, as far as headers show them.

    passwords: what is tried on a PDF that needs one, in this order; LockedError where none opens
    it. What may be read without one is read, whatever else its owner has forbidden. A PDF that says
    that it has more pages than are there ends with one that cannot be loaded, in the place of all
    those.
    """
    return _pages(source, name, PixelLimit(max_pixels, limit_option), passwords=passwords)


def open_together(
    source: ImageSource,
    name: str | None = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    most: int = DEFAULT_MOST_PAGES,
    limit_option: str | None = None,
) -> list[Page]:
    """The pages of a source that are asked about together. As `open_pages`, but RequestError for
    more than `most`. The pictures of an image with several are decoded here, and may not have more
    than `max_pixels` together: an animation cannot be entered in the middle."""
    return _pages(source, name, PixelLimit(max_pixels, limit_option), most)


def _pages(
    source: ImageSource,
    name: str | None,
    limit: PixelLimit,
    most_together: int | None = None,
    passwords: Sequence[str] | None = None,
) -> list[Page]:
    if isinstance(source, Page):
        return [source]
    kept, called = rereadable(source), label_of(source) if name is None else name
    with _opened(kept, "auto", limit, called, passwords) as file:
        count = file.num_pages
        sources: list[ImageSource] = [kept] * count
        if most_together is not None:
            _check_count(count, called, most_together)
            if isinstance(file, ImageFile) and count > 1:
                _check_pixels(file, called, limit)
                sources = [file.load(page) for page in range(count)]
        origin = file.origin if isinstance(file, PdfFile) else None
        labels = file.labels() if isinstance(file, PdfFile) else [None] * count
    return [
        Page(name=called, source=one, number=number, count=count, label=label, origin=origin)
        for number, (one, label) in enumerate(zip(sources, labels, strict=True), start=1)
    ]


@contextmanager
def _opened(
    source: object,
    background: Background,
    limit: PixelLimit,
    label: str | None = None,
    passwords: Sequence[str] | None = None,
) -> Iterator[_Opened]:
    """The source, open for its pages; closed at the end of the block."""
    origin = None
    if isinstance(source, Page):
        source, label, origin = source.source, source.name, source.origin
    if not isinstance(source, Image.Image) and (
        hasattr(source, "__array_interface__") or is_tensor(source)
    ):
        source = image_of_array(source)
    if isinstance(source, Image.Image):
        yield HeldImage(source, background, limit)
        return
    label = label_of(source) if label is None else label
    with open_file(source, label) as file:
        if is_pdf(file):
            yield PdfFile(file, label, limit, passwords, origin)
        else:
            yield ImageFile(file, label, background, limit)


def _check_pixels(file: ImageFile | PdfFile, label: str, limit: PixelLimit) -> None:
    """RequestError, before anything is decoded, for pages that have more pixels than the limit
    together."""
    num_pixels = sum(file.num_pixels(page) for page in range(file.num_pages))
    if num_pixels > limit.max_pixels:
        raise limit.exceeded(label, f" ({file.num_pages} pages together)")


def _check_count(num_pages: int, label: str, most: int) -> None:
    if num_pages > most:
        raise RequestError(
            f"{label} has {num_pages} pages; at most {most} can be asked about together.",
            "Save the pages that you mean as files of their own.",
        )
