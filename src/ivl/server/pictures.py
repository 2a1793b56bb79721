"""Images in requests: data URLs, base64, and the pages of PDFs, within limits."""

from __future__ import annotations

import base64
import binascii
import re
import threading
from typing import Any
from urllib.parse import unquote

import pypdfium2
from PIL import Image

from ivl.documents.pdf import open_pdf
from ivl.errors import RequestError
from ivl.prompt.pixels import load_pages, num_frames
from ivl.server.errors import ApiError
from ivl.server.settings import ServerSettings

PAGE_PIXELS = 12 * 448 * 448
"""A page of a PDF is drawn with as many pixels as 12 tiles have."""
MOST_DPI = 300

# PDFium may be used by one thread at a time.
_pdfium_lock = threading.Lock()

Picture = bytes | Image.Image

BARE_CHARACTERS = 64
_BARE = re.compile(r"[A-Za-z0-9+/_\-\s]+")
_FROM_URL_ALPHABET = str.maketrans("-_", "+/")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 as programs make it: with line breaks and blanks, with or without
    padding, in the alphabet of addresses too, or as a data URL. RequestError for what is none."""
    if is_data_url(text):
        return decode_data_url(text)
    plain = "".join(text.split()).rstrip("=")
    plain = plain.translate(_FROM_URL_ALPHABET)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{what} is not valid base64.", _base64_hint(text)) from None


def _base64_hint(text: str) -> str:
    """What programs do in the place of encoding a file."""
    beginning = text.strip()[:64]
    if beginning.startswith(("b'", 'b"')):
        return "It is Python's bytes written out: add .decode() to base64.b64encode(...)."
    if is_remote(beginning) or re.match(r"file:|~|[.]{0,2}/|[A-Za-z]:[\\/]", beginning):
        return "Send the file's bytes in base64: addresses and paths are not read here."
    return "Encode the bytes of the whole file."


def decode_data_url(url: str) -> bytes:
    """The bytes of `data:[type];base64,...` (RFC 2397)."""
    head, comma, data = url.strip().partition(",")
    if not comma or not head.lower().rstrip().endswith(";base64"):
        raise RequestError(
            "A data URL has the form data:image/png;base64,... here.", "Encode the file in base64."
        )
    return decode_base64(unquote(data) if "%" in data else data, "The data URL")


def is_data_url(text: str) -> bool:
    return text[:64].lstrip()[:5].lower() == "data:"


def is_bare_base64(url: str) -> bool:
    """Whether a file's base64 stands where an address is expected. Paths and names are too short,
    or have other characters."""
    beginning = url[:BARE_CHARACTERS]
    return len(url) >= BARE_CHARACTERS and _BARE.fullmatch(beginning) is not None


def is_remote(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def check_url(url: str, settings: ServerSettings) -> None:
    """RequestError for an address that is neither data nor one that this server may fetch."""
    if is_data_url(url) or is_bare_base64(url):
        return
    if url[:5].lower() == "file:":
        raise RequestError(
            "This server reads no files of its own machine.",
            "Send a data URL, data:image/png;base64,..., with the file's bytes.",
        )
    if not is_remote(url):
        raise RequestError(
            "An image is a data URL here.", "Send data:image/png;base64,... with the file's bytes."
        )
    if not settings.remote_images:
        raise RequestError(
            "This server does not fetch images from addresses.",
            "Send a data URL, or start it with --remote-images.",
        )


def is_pdf(data: bytes) -> bool:
    return data[:1024].lstrip().startswith(b"%PDF-")


def pages_of(data: bytes, settings: ServerSettings) -> list[Picture]:
    """The pictures in a file: one image, or every page of a PDF, a TIFF or an animation."""
    if not is_pdf(data):
        most = settings.max_image_pixels
        if num_frames(data, max_pixels=most) == 1:
            return [data]
        return [*load_pages(data, max_pixels=most, most=settings.max_images)]
    with _pdfium_lock:
        return list(_draw_pages(data, settings.max_images))


def _draw_pages(data: bytes, most: int) -> list[Image.Image]:
    document = open_pdf(data)
    try:
        if len(document) > most:
            raise RequestError(
                f"The PDF has {len(document)} pages, and may have 1 to {most}.",
                "Send the pages that matter.",
            )
        return [_draw(document, number) for number in range(len(document))]
    except pypdfium2.PdfiumError:
        raise RequestError("The PDF has a page that cannot be drawn.", "Save it again.") from None
    finally:
        document.close()


def _draw(document: Any, number: int) -> Image.Image:
    page = document[number]
    width, height = page.get_size()  # in points, 1/72 inch
    if not (0 < width < 1e5 and 0 < height < 1e5):
        raise RequestError(f"Page {number + 1} of the PDF has no usable size.")
    scale = min((PAGE_PIXELS / (width * height)) ** 0.5, MOST_DPI / 72)
    # A side of less than a pixel cannot be drawn.
    scale = max(scale, 1 / min(width, height))
    if width * height * scale * scale > 4 * PAGE_PIXELS:
        raise RequestError(f"Page {number + 1} of the PDF is far too narrow.")
    try:
        return page.render(scale=scale).to_pil().convert("RGB")
    finally:
        page.close()


def check_count(num_images: int, settings: ServerSettings) -> None:
    """ApiError 400 for more images than a request may have."""
    if num_images > settings.max_images:
        raise ApiError(
            400,
            f"The request has {num_images} images, and may have {settings.max_images}.",
            code="too_many_images",
        )
