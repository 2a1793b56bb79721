"""Kinds of broken and hostile PDFs, made here, and what has to come of each."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from tests.pages.pdf_files import ENCRYPTED, locked_pdf, pdf, pdf_of_objects, stream

CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
RED = b"1 0 0 rg 0 0 100 100 re f"
PAGE = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 4 0 R>>"
SQUARE = (100, 100)
TWO = pdf((SQUARE, "1 0 0"), (SQUARE, "0 0 1"))


@dataclass(frozen=True)
class Kind:
    """A file, what its pages come to ("ok" or "failed" for each; "failed" or "locked" of a file
    that cannot be opened is `opens`), and a part of what is said. takes: what it would take from
    who draws it, "time" or "memory", if it could."""

    data: bytes
    pages: str = ""
    opens: str = "ok"
    says: str = ""
    takes: str = ""


def tree(pages: bytes, *more: bytes, page: bytes = PAGE) -> bytes:
    """Objects 2 (the root of the page tree), 3 (a page), 4 (what it shows), and others."""
    return pdf_of_objects(CATALOG, pages, page, stream(RED), *more)


def showing(content: bytes, keys: bytes = b"", *more: bytes) -> bytes:
    """One page with this content; `keys` are further ones of the page, `more` are objects 5, ..."""
    page = PAGE.replace(b">>", keys + b">>")
    return pdf_of_objects(CATALOG, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page, content, *more)


def packed(data: bytes) -> bytes:
    return stream(zlib.compress(data, 9), b"/Filter/FlateDecode")


def much(byte: bytes, num_megabytes: int) -> bytes:
    """So much of a byte in the format of zlib, without having it at any time: blocks that end with
    a full flush may be repeated (RFC 1951)."""
    megabyte = byte * 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(megabyte)
    packer.flush(zlib.Z_FULL_FLUSH)  # the first block has no other before it
    block = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    sum_ = 1
    for _ in range(num_megabytes):
        sum_ = zlib.adler32(megabyte, sum_)
    return b"\x78\xda" + block * num_megabytes + b"\x03\x00" + sum_.to_bytes(4, "big")


def nested_forms(depth: int, each: int) -> bytes:
    """A form that shows another so many times, which shows another as often, and so on."""
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 100 100]/Resources<</XObject<</X %d 0 R>>>>"
    forms = [stream(b"/X Do " * each, form % (6 + number)) for number in range(depth)]
    last = stream(RED, b"/Type/XObject/Subtype/Form/BBox[0 0 100 100]")
    return showing(stream(b"/X Do"), b"/Resources<</XObject<</X 5 0 R>>>>", *forms, last)


def picture(side: int, num_megabytes: int) -> bytes:
    """A page with a picture of side x side grey pixels, of which so many are there."""
    keys = (
        b"/Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8"
    )
    return showing(
        stream(b"q 100 0 0 100 0 0 cm /X Do Q"),
        b"/Resources<</XObject<</X 5 0 R>>>>",
        stream(
            zlib.compress(much(b"\x80", num_megabytes), 9),
            b"/Filter[/FlateDecode/FlateDecode]" + keys % (side, side),
        ),
    )


def with_attachment() -> bytes:
    """A portfolio: a cover page, and a PDF inside."""
    catalog = CATALOG.replace(
        b">>", b"/Collection<<>>/Names<</EmbeddedFiles<</Names[(a.pdf) 5 0 R]>>>>>>"
    )
    return pdf_of_objects(
        *(catalog, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", PAGE, stream(RED)),
        b"<</Type/Filespec/F(a.pdf)/UF(a.pdf)/EF<</F 6 0 R>>>>",
        stream(TWO, b"/Type/EmbeddedFile"),
    )


KINDS = {
    # What is wrong with the file as a whole.
    "garbage in front": Kind(b"\0\xff\xfe printer says hello\r\n" * 10 + TWO, "ok ok"),
    "garbage behind": Kind(TWO + b"\0garbage" * 1000, "ok ok"),
    "xref table gone": Kind(TWO[: TWO.index(b"xref")], "ok ok failed", says="no more pages"),
    "xref table shifted": Kind(TWO.replace(b"startxref\n", b"startxref\n9"), "ok ok"),
    "xref offsets wrong": Kind(
        TWO.replace(b" 00000 n", b" 00000 n").replace(b"\n000", b"\n001"), "ok ok"
    ),
    "xref table in a circle": Kind(
        TWO.replace(b"/Root", b"/Prev %d/Root" % TWO.index(b"xref")), "ok ok"
    ),
    "cut off behind a page": Kind(TWO[: TWO.index(b"6 0 obj")], "ok failed", says="no more pages"),
    "cut off in a page": Kind(TWO[: TWO.index(b"7 0 obj") + 30], "ok ok failed", says="is missing"),
    "cut off before the pages": Kind(TWO[:160], opens="failed", says="is damaged"),
    "cut off in the header": Kind(TWO[:20], opens="failed", says="is damaged"),
    "no catalog": Kind(
        TWO.replace(b"/Root 1 0 R", b"/Root 9 0 R"), "ok ok failed", says="no more pages"
    ),
    # Encryption.
    "needs a password": Kind(locked_pdf(b"secret"), opens="locked", says="needs a password"),
    "password that nobody knows": Kind(ENCRYPTED, opens="locked", says="needs a password"),
    "owner forbids everything": Kind(locked_pdf(b""), "ok ok"),
    "unknown encryption": Kind(
        ENCRYPTED.replace(b"/Filter/Standard", b"/Filter/Foo.Bar"),
        opens="failed",
        says="in a way that PDFium does not know",
    ),
    # The page tree.
    "no pages": Kind(pdf(), opens="failed", says="has no pages"),
    "page missing": Kind(pdf((SQUARE, "1 0 0"), None, (SQUARE, "0 0 1")), "ok failed ok"),
    "count too high": Kind(
        tree(b"<</Type/Pages/Kids[3 0 R 3 0 R]/Count 1000>>"), "ok ok failed", says="has 1000 pages"
    ),
    "count of millions": Kind(tree(b"<</Type/Pages/Kids[3 0 R]/Count 2000000000>>"), "ok"),
    "count below zero": Kind(tree(b"<</Type/Pages/Kids[3 0 R 3 0 R]/Count -1>>"), "ok ok"),
    "no count": Kind(tree(b"<</Type/Pages/Kids[3 0 R 3 0 R]>>"), "ok ok"),
    "tree contains itself": Kind(tree(b"<</Type/Pages/Kids[3 0 R 2 0 R]/Count 2>>"), "ok failed"),
    "tree in a circle": Kind(
        tree(b"<</Type/Pages/Kids[5 0 R]>>", b"<</Type/Pages/Kids[2 0 R]/Parent 2 0 R>>"),
        "ok failed",
        says="no more pages",
    ),
    "tree that doubles": Kind(
        pdf_of_objects(
            CATALOG,
            *(b"<</Type/Pages/Kids[%d 0 R %d 0 R]>>" % (n, n) for n in range(3, 60)),
            PAGE,
        ),
        "ok failed",
        says="no more pages",
    ),
    "parent of itself": Kind(
        tree(
            b"<</Type/Pages/Kids[3 0 R]/Count 1/Parent 2 0 R>>",
            page=b"<</Type/Page/Parent 2 0 R/Contents 4 0 R>>",
        ),
        "ok",
    ),
    # Pages.
    "page without size": Kind(showing(stream(RED)).replace(b"/MediaBox[0 0 100 100]", b""), "ok"),
    "page of no width": Kind(pdf((SQUARE, "1 0 0"), ((0.001, 5000), "1 0 0")), "ok failed"),
    "page of miles": Kind(
        pdf(((3_000_000, 100), "1 0 0"), (SQUARE, "0 0 1")), "failed ok", says="no usable size"
    ),
    "page without content": Kind(
        pdf_of_objects(CATALOG, *[b"<</Type/Pages/Kids[3 0 R]/Count 1>>", PAGE]), "ok"
    ),
    "content of noise": Kind(showing(stream(bytes(range(256)) * 100)), "ok"),
    "content that cannot be unpacked": Kind(
        showing(stream(b"no zlib" * 99, b"/Filter/FlateDecode")), "ok"
    ),
    "a million brackets": Kind(showing(packed(b"[" * 1_000_000)), "ok"),
    "a million states saved": Kind(showing(packed(b"q " * 1_000_000)), "ok"),
    "picture of 400 megapixels": Kind(picture(20_000, 382), "ok"),
    "picture of which most is missing": Kind(picture(50_000, 1), "ok"),
    "files inside": Kind(with_attachment(), "ok"),
    # Made to do harm.
    "content that unpacks to much": Kind(
        showing(
            stream(zlib.compress(much(b" ", 400), 9), b"/Filter[/FlateDecode/FlateDecode]"),
        ),
        "failed",
        takes="memory",
    ),
    "form within form": Kind(nested_forms(20, 20), "failed", takes="time"),
    "form that shows itself": Kind(
        showing(
            stream(b"/X Do"),
            b"/Resources<</XObject<</X 5 0 R>>>>",
            stream(
                b"/X Do " * 100,
                b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 5 0 R>>>>",
            ),
        ),
        "failed",
        takes="time",
    ),
    "pattern with steps of nothing": Kind(
        showing(
            stream(b"/Pattern cs /P scn 0 0 100 100 re f"),
            b"/Resources<</Pattern<</P 5 0 R>>>>",
            stream(
                b"1 0 0 rg 0 0 1 1 re f",
                b"/Type/Pattern/PatternType 1/PaintType 1/TilingType 1/BBox[0 0 1 1]"
                b"/XStep 0.0001/YStep 0.0001/Resources<<>>",
            ),
        ),
        "failed",
        takes="time",
    ),
}
