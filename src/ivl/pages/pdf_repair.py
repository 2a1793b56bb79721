"""A new page tree for a PDF in which none is found: cut off, or with a tree that goes in circles.

PDFium finds objects without a table of them, but not the pages without a trailer and a tree that
lead there. So a catalog is written behind the file that has the pages as they lie in it.
"""

from __future__ import annotations

import re
from typing import Final

# The beginning of an object, up to where its dictionary must have said what it is.
_OBJECT: Final = re.compile(rb"(?<!\d)(\d{1,9})[ \t\r\n\0\f]+(\d{1,5})[ \t\r\n\0\f]+obj\b")
_END: Final = re.compile(rb"\bendobj\b|\bstream\b")
_IS_PAGE: Final = re.compile(rb"/Type\s*/Page(?![A-Za-z0-9])")
_MOST_DICTIONARY_BYTES: Final = 1 << 16


def with_new_page_tree(data: bytes) -> bytes | None:
    """The file with a catalog behind it of the pages that lie in it, in their order; None where
    there are none to be seen: in files that are encrypted, or keep such objects compressed."""
    if b"/Encrypt" in data:
        return None
    pages: dict[bytes, bytes] = {}
    top = 0
    for found in _OBJECT.finditer(data):
        number, generation = found.groups()
        top = max(top, int(number))
        end = _END.search(data, found.end(), found.end() + _MOST_DICTIONARY_BYTES)
        # What is not complete may be a page that was cut off.
        if end is not None and _IS_PAGE.search(data, found.end(), end.start()):
            pages[number] = generation
    if not pages:
        return None
    kids = b" ".join(b"%s %s R" % page for page in pages.items())
    return data + (
        b"\nendstream\nendobj\n%d 0 obj\n<</Type/Catalog/Pages %d 0 R>>\nendobj\n"
        b"%d 0 obj\n<</Type/Pages/Kids[%s]/Count %d>>\nendobj\n"
        b"trailer\n<</Size %d/Root %d 0 R>>\nstartxref\n0\n%%%%EOF"
        % (top + 1, top + 2, top + 2, kids, len(pages), top + 3, top + 1)
    )
