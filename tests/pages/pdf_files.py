"""PDF files for tests, written by hand: what each needs is a few objects."""

from __future__ import annotations

from collections.abc import Sequence

FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"


def pdf_of_objects(*objects: bytes, trailer: bytes = b"") -> bytes:
    """A file of the objects 1, 2, ..., of which the first is the catalog."""
    out, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return (
        out
        + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
        + b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (size, trailer, len(out))
    )


def stream(content: bytes, keys: bytes = b"") -> bytes:
    return b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), keys, content)


def pdf(
    *pages: tuple[Sequence[float], str] | None, keys: bytes = b"", trailer: bytes = b""
) -> bytes:
    """A page for every ((width, height) in points, what it shows): a colour as "1 0 0", which fills
    it, or lines of text. None is a page that is listed and not there. `keys`: further ones of every
    page."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages)),
        FONT,
    ]
    for n, page in enumerate(pages):
        if page is None:
            objects += [b"null", b"null"]
            continue
        (width, height), shown = page
        if shown.replace(" ", "").replace(".", "").isdigit():
            content = f"{shown} rg 0 0 {width} {height} re f"
        else:
            lines = " ".join(f"({line}) Tj T*" for line in shown.splitlines())
            content = f"BT /F 24 Tf 30 TL 30 {height - 60} Td {lines} ET"
        objects += [
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %s]/Contents %d 0 R"
            b"/Resources<</Font<</F 3 0 R>>>>%s>>"
            % (f"{width} {height}".encode(), 5 + 2 * n, keys),
            stream(content.encode()),
        ]
    return pdf_of_objects(*objects, trailer=trailer)


ENCRYPTED = pdf(
    ((100, 100), "1 0 0"),
    trailer=b"/ID[(0123456789abcdef)(0123456789abcdef)]/Encrypt<</Filter/Standard/V 1/R 2/P -4"
    b"/O(%s)/U(%s)>>" % (b"o" * 32, b"u" * 32),
)
"""A file that opens with a password which nobody knows."""
NO_PAGES = pdf()
DAMAGED = b"%PDF-1.7\nnothing that could be repaired"
