"""Writes PDF files: pages of pictures, of text in the standard fonts, and of both (ISO 32000-1).

The text of a page is a real layer: it is drawn from the codes that a reader finds. It can be drawn
invisibly, as programs do that read scans, and it can be made to say something else than it shows.
The same pages give the same bytes.
"""

from __future__ import annotations

import ctypes
import functools
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pypdfium2
from PIL import Image
from pypdfium2 import raw as pdfium

Turn = Literal[0, 90, 180, 270]
FONTS = ("Helvetica", "Helvetica-Bold", "Times-Roman", "Times-Bold", "Courier", "Courier-Bold")
"""Of the fonts that every reader of PDFs has (ISO 32000-1, 9.6.2.2)."""
ASCENT_EM, DESCENT_EM = 0.75, 0.25
"""How far ink reaches above and below the baseline, or a little less, in all of them."""

_MATRICES = {
    0: "1 0 0 1 0 0",
    90: "0 1 -1 0 {h} 0",
    180: "-1 0 0 -1 {w} {h}",
    270: "0 -1 1 0 0 {w}",
}
_INVISIBLE = 3
"""The rendering mode of a layer behind a scan (ISO 32000-1, table 106)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedText:
    """A line of text. x, y: its left end and its baseline, in points from the page's top left
    corner. width_pt: it is stretched to that width. is_hidden: it is there, and not seen."""

    text: str
    x: float
    y: float
    size_pt: float
    font: str = "Helvetica"
    width_pt: float | None = None
    is_hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PdfPage:
    """A page as it is seen: (width, height) in points, a picture that fills it, text, rules.

    jpeg_quality: of the picture; None keeps every pixel. rules: (x0, y0, x1, y1) in points from the
    top left corner. rotate: the page is stored turned against the clock, and its `/Rotate` turns it
    back. says: what readers take the letters of the text for, where it is not what they show.
    """

    size_pt: tuple[float, float]
    image: Image.Image | None = None
    jpeg_quality: int | None = None
    texts: tuple[PlacedText, ...] = ()
    rules: tuple[tuple[float, float, float, float], ...] = ()
    rotate: Turn = 0
    says: Mapping[str, str] | None = None


def text_width_pt(text: str, font: str, size_pt: float) -> float:
    """Width of printable ASCII in one of `FONTS`."""
    widths = _widths(font)
    return sum(widths[character] for character in text) * size_pt / 1000


def write_pdf(pages: Sequence[PdfPage]) -> bytes:
    """A file of these pages. ValueError for text that is not printable ASCII."""
    objects: list[bytes] = [b"", b""]  # the catalog and the tree of pages come when all is known
    kids: list[int] = []
    for page in pages:
        resources = b""
        if page.image is not None:
            objects.append(_picture(page.image, page.jpeg_quality))
            resources += b"/XObject<</I %d 0 R>>" % len(objects)
        if page.texts:
            resources += b"/Font<<%s>>" % _fonts(page, objects)
        objects.append(_stream(_content(page).encode("ascii")))
        width, height = page.size_pt
        if page.rotate in (90, 270):
            width, height = height, width
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %s %s]/Rotate %d/Contents %d 0 R"
            b"/Resources<<%s>>>>"
            % (_number(width), _number(height), page.rotate, len(objects), resources)
        )
        kids.append(len(objects))
    objects[0] = b"<</Type/Catalog/Pages 2 0 R>>"
    references = b" ".join(b"%d 0 R" % kid for kid in kids)
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (references, len(kids))
    return _file(objects)


def _file(objects: Sequence[bytes]) -> bytes:
    out, offsets = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start, size = len(out), len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (size, start)
    return bytes(out)


def _picture(image: Image.Image, quality: int | None) -> bytes:
    grey = image.mode == "L"
    image = image if grey else image.convert("RGB")
    keys = b"/Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent 8" % image.size
    keys += b"/ColorSpace/DeviceGray" if grey else b"/ColorSpace/DeviceRGB"
    if quality is None:
        return _stream(image.tobytes(), keys)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    data = file.getvalue()
    return b"<<%s/Filter/DCTDecode/Length %d>>\nstream\n%s\nendstream" % (keys, len(data), data)


def _stream(data: bytes, keys: bytes = b"") -> bytes:
    data = zlib.compress(data, 6)
    return b"<<%s/Filter/FlateDecode/Length %d>>\nstream\n%s\nendstream" % (keys, len(data), data)


def _fonts(page: PdfPage, objects: list[bytes]) -> bytes:
    """Adds the fonts of a page to the objects, and names them."""
    says = b""
    if page.says is not None:
        objects.append(_stream(_unicode_map(page.says).encode("ascii")))
        says = b"/ToUnicode %d 0 R" % len(objects)
    names = b""
    for font in sorted({text.font for text in page.texts}):
        objects.append(
            b"<</Type/Font/Subtype/Type1/BaseFont/%s/Encoding/WinAnsiEncoding%s>>"
            % (font.encode("ascii"), says)
        )
        names += b"/F%d %d 0 R" % (FONTS.index(font), len(objects))
    return names


def _unicode_map(says: Mapping[str, str]) -> str:
    """The codes of a font, and what they shall be taken for (ISO 32000-1, 9.10.3)."""
    codes = [chr(code) for code in range(32, 127)]
    # At most 100 entries stand between beginbfchar and endbfchar.
    rows = "\n".join(f"<{ord(c):02X}> <{ord(says.get(c, c)):04X}>" for c in codes)
    return (
        "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n/CMapName /Says def\n"
        "/CMapType 2 def\n1 begincodespacerange\n<00> <FF>\nendcodespacerange\n"
        f"{len(codes)} beginbfchar\n{rows}\nendbfchar\nendcmap\nend\nend"
    )


def _content(page: PdfPage) -> str:
    width, height = page.size_pt
    matrix = _MATRICES[page.rotate].format(w=f"{width:.3f}", h=f"{height:.3f}")
    parts = [f"{matrix} cm"]
    if page.image is not None:
        parts.append(f"q {width:.3f} 0 0 {height:.3f} 0 0 cm /I Do Q")
    for x0, y0, x1, y1 in page.rules:
        parts.append(f"0.6 w {x0:.2f} {height - y0:.2f} m {x1:.2f} {height - y1:.2f} l S")
    if page.texts:
        parts.append("BT")
        for text in page.texts:
            parts.append(_shown(text, height))
        parts.append("ET")
    return "\n".join(parts)


def _shown(text: PlacedText, height: float) -> str:
    if not (text.text.isascii() and text.text.isprintable()):
        raise ValueError(f"{text.text!r} is not printable ASCII")
    natural = text_width_pt(text.text, text.font, text.size_pt)
    stretch = 100.0 if text.width_pt is None else 100 * text.width_pt / max(natural, 1e-3)
    escaped = text.text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    mode = _INVISIBLE if text.is_hidden else 0
    return (
        f"{mode} Tr /F{FONTS.index(text.font)} {text.size_pt:.3f} Tf "
        f"{stretch:.2f} Tz 1 0 0 1 {text.x:.3f} {height - text.y:.3f} Tm ({escaped}) Tj"
    )


def _number(value: float) -> bytes:
    return f"{value:.3f}".encode("ascii")


@functools.cache
def _widths(font: str) -> dict[str, float]:
    """Advances of printable ASCII in thousandths of an em, as PDFium has them."""
    document = pypdfium2.PdfDocument.new()
    try:
        loaded = pdfium.FPDFText_LoadStandardFont(document.raw, font.encode("ascii"))
        found = {}
        for code in range(32, 127):
            width = ctypes.c_float()
            if not pdfium.FPDFFont_GetGlyphWidth(loaded, code, 1000.0, width):
                raise ValueError(f"PDFium has no width of {chr(code)!r} in {font}")
            found[chr(code)] = width.value
        pdfium.FPDFFont_Close(loaded)
    finally:
        document.close()
    return found
