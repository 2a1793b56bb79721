"""Images in requests: data URLs, base64, and the pages of PDFs, within limits."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

from ivl.errors import RequestError
from ivl.pages.reader import Page, open_together
from ivl.server.errors import ApiError
from ivl.server.settings import ServerSettings

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


def pages_of(data: bytes, settings: ServerSettings) -> list[Page]:
    """The pages of a file that are asked about: one image, or every page of a PDF, a TIFF or an
    animation."""
    return open_together(data, max_pixels=settings.max_image_pixels, most=settings.max_images)


def check_count(num_images: int, settings: ServerSettings) -> None:
    """ApiError 400 for more images than a request may have."""
    if num_images > settings.max_images:
        raise ApiError(
            400,
            f"The request has {num_images} images, and may have {settings.max_images}.",
            code="too_many_images",
        )
