"""Opens PDF files, or says why they cannot be opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ivl.errors import RequestError

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

ENCRYPTED = b"/Encrypt"
"""What the trailer of an encrypted file names (ISO 32000-1, 7.6.1)."""


def open_pdf(source: bytes | Path, label: str = "The PDF") -> PdfDocument:
    """A document with at least one page; whoever opens it closes it. RequestError otherwise.

    PDFium keeps the reason of an earlier failure where a later one has none of its own, so that
    only an encrypted file is taken to need a password.
    """
    import pypdfium2

    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise RequestError(f"{label} cannot be read: {error.strerror}.") from None
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower() and ENCRYPTED in data:
            raise RequestError(f"{label} needs a password.", "Save it without one.") from None
        raise RequestError(
            f"{label} has no pages, is damaged or incomplete.", "Save it again."
        ) from None
    if len(document) == 0:
        document.close()
        raise RequestError(f"{label} has no pages.")
    return document
