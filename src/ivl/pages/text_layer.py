"""The text that a page of a PDF carries, by PDFium's text pages.

A born-digital page says what it says; behind a scan, what a reader of characters once made of it
is drawn invisibly. Whether such a text can be trusted is judged elsewhere: here are the facts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

Box: TypeAlias = tuple[float, float, float, float]
"""left, top, right, bottom as shares (0 to 1) of the upright drawn page"""

_Matrix: TypeAlias = tuple[float, float, float, float, float, float]

# PDFium itself follows forms within forms so deep or less.
_MOST_NESTED_FORMS: Final = 12
# A page of a book has 3,000 characters; of more objects than this the covered area is not wanted.
_MOST_OBJECTS: Final = 200_000
_GRID: Final = 256

_LINE_ENDS: Final = frozenset("\r\n")
_HIDDEN: Final = 2 | 32  # flags of annotations: hidden, and not to be viewed (ISO 32000-1, 12.5.3)
_PASSWORD_FIELD: Final = 1 << 13  # 12.7.4.3


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLine:
    """A line of a text layer; box: left, top, right, bottom as shares (0 to 1) of the upright drawn
    page."""

    text: str
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLayer:
    """What a PDF says that a page says.

    text: the lines in reading order, as PDFium gives them, with "\\n" between. A hyphen that PDFium
        finds at the end of a line is "-". What fields of a form were filled in with, and notes that
        were typed onto the page, are lines too, behind those that they stand beside.
    hidden_share: of the characters, those drawn invisibly (render mode 3), as behind a scan.
    image_share: of the page's area, what images cover (0 to 1, in steps of 1/65536).
    num_unmapped: characters without a usable Unicode value: U+FFFD, U+0000, private use, controls,
        and those of which PDFium says that the font does not tell it.
    """

    text: str
    lines: tuple[TextLine, ...]
    hidden_share: float
    image_share: float
    num_unmapped: int


def text_layer_of(page: PdfPage) -> TextLayer | None:
    """The layer of an open page, or None where it has no text.

    PdfiumError where PDFium cannot make a text page of it.
    """
    upright = _Upright.of(page)
    found = _Characters()
    found.read(page, upright)
    lines = found.lines
    for line in _typed_in(page, upright):
        lines.insert(_place_of(line, lines), line)
    if not lines:
        return None
    return TextLayer(
        text="\n".join(line.text for line in lines),
        lines=tuple(lines),
        hidden_share=found.num_hidden / found.num_drawn if found.num_drawn else 0.0,
        image_share=_image_share(page, upright),
        num_unmapped=found.num_unmapped,
    )


@dataclass(frozen=True, slots=True)
class _Upright:
    """From a page's own coordinates, in points upward, to shares of it as it is drawn."""

    left: float
    bottom: float
    right: float
    top: float
    degrees: int

    @classmethod
    def of(cls, page: PdfPage) -> _Upright:
        return cls(*page.get_bbox(), page.get_rotation())

    def box(self, xs: tuple[float, ...], ys: tuple[float, ...]) -> Box:
        """The box around points, cut off at the page's edges."""
        width, height = (self.right - self.left) or 1.0, (self.top - self.bottom) or 1.0
        x0, x1 = ((x - self.left) / width for x in (min(xs), max(xs)))
        y0, y1 = ((self.top - y) / height for y in (max(ys), min(ys)))
        # /Rotate turns clockwise: what was the left edge is the top one at 90 degrees.
        turned = {
            0: (x0, y0, x1, y1),
            90: (1 - y1, x0, 1 - y0, x1),
            180: (1 - x1, 1 - y1, 1 - x0, 1 - y0),
            270: (y0, 1 - x1, y1, 1 - x0),
        }[self.degrees]
        left, top, right, bottom = (min(max(share, 0.0), 1.0) for share in turned)
        return left, top, right, bottom


class _Characters:
    """The characters of a page, gathered to lines and counted."""

    def __init__(self) -> None:
        self.lines: list[TextLine] = []
        self.num_drawn = self.num_hidden = self.num_unmapped = 0
        self._units: list[int] = []
        self._xs: list[float] = []
        self._ys: list[float] = []

    def read(self, page: PdfPage, upright: _Upright) -> None:
        import pypdfium2.raw as pdfium

        text = page.get_textpage()
        try:
            is_hidden: dict[int | None, bool] = {}
            left, right, bottom, top = (ctypes.c_double() for _ in range(4))
            for index in range(text.count_chars()):
                unit = pdfium.FPDFText_GetUnicode(text, index)
                if chr(unit) in _LINE_ENDS and pdfium.FPDFText_IsGenerated(text, index):
                    self._end_line(upright)
                    continue
                is_hyphen = pdfium.FPDFText_IsHyphen(text, index) == 1
                self._units.append(ord("-") if is_hyphen else unit)
                if not chr(unit).isspace() and not 0xDC00 <= unit < 0xE000:
                    drawn = pdfium.FPDFText_GetTextObject(text, index)
                    key = ctypes.cast(drawn, ctypes.c_void_p).value
                    if key not in is_hidden:
                        mode = pdfium.FPDFTextObj_GetTextRenderMode(drawn) if key else None
                        is_hidden[key] = mode == pdfium.FPDF_TEXTRENDERMODE_INVISIBLE
                    self.num_drawn += 1
                    self.num_hidden += is_hidden[key]
                    if not is_hyphen and (
                        _is_unusable(unit) or pdfium.FPDFText_HasUnicodeMapError(text, index) == 1
                    ):
                        self.num_unmapped += 1
                    if pdfium.FPDFText_GetCharBox(text, index, left, right, bottom, top):
                        self._xs += (left.value, right.value)
                        self._ys += (bottom.value, top.value)
                if is_hyphen:  # PDFium puts it in the place of the end of the line
                    self._end_line(upright)
            self._end_line(upright)
        finally:
            text.close()

    def _end_line(self, upright: _Upright) -> None:
        line = _text_of(self._units).strip()
        if line and self._xs:
            box = upright.box(tuple(self._xs), tuple(self._ys))
            self.lines.append(TextLine(text=line, box=box))
        self._units, self._xs, self._ys = [], [], []


def _is_unusable(unit: int) -> bool:
    """Whether it says nothing: a control, U+FFFD, or one for private use (of the first plane)."""
    return unit < 0x20 or 0x7F <= unit < 0xA0 or 0xE000 <= unit < 0xF900 or unit >= 0xFFFD


def _text_of(units: list[int]) -> str:
    """PDFium gives what is beyond the first plane as two surrogates, or as one number."""
    text = "".join(chr(unit) if unit < 0x110000 else "\N{REPLACEMENT CHARACTER}" for unit in units)
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\0", "\N{REPLACEMENT CHARACTER}").replace("\r", " ").replace("\n", " ")


def _typed_in(page: PdfPage, upright: _Upright) -> Iterator[TextLine]:
    """What people wrote into a form or onto a page, which is no part of the page's own text."""
    import pypdfium2.raw as pdfium

    for index in range(max(pdfium.FPDFPage_GetAnnotCount(page), 0)):
        note = pdfium.FPDFPage_GetAnnot(page, index)
        if not note:
            continue
        try:
            if pdfium.FPDFAnnot_GetFlags(note) & _HIDDEN:
                continue
            kind, edges = pdfium.FPDFAnnot_GetSubtype(note), pdfium.FS_RECTF()
            text = ""
            if kind == pdfium.FPDF_ANNOT_FREETEXT:
                text = _wide(pdfium.FPDFAnnot_GetStringValue, note, b"Contents\0")
            elif kind == pdfium.FPDF_ANNOT_WIDGET and page.formenv is not None:
                text = _field_value(page.formenv, note)
            if text.strip() and pdfium.FPDFAnnot_GetRect(note, edges):
                xs, ys = (edges.left, edges.right), (edges.bottom, edges.top)
                lines = " ".join(text.split())
                yield TextLine(text=lines, box=upright.box(xs, ys))
        finally:
            pdfium.FPDFPage_CloseAnnot(note)


def _field_value(form: object, note: object) -> str:
    import pypdfium2.raw as pdfium

    written = (
        pdfium.FPDF_FORMFIELD_TEXTFIELD,
        pdfium.FPDF_FORMFIELD_COMBOBOX,
        pdfium.FPDF_FORMFIELD_LISTBOX,
    )
    if pdfium.FPDFAnnot_GetFormFieldType(form, note) not in written:
        return ""
    if pdfium.FPDFAnnot_GetFormFieldFlags(form, note) & _PASSWORD_FIELD:
        return ""
    return _wide(pdfium.FPDFAnnot_GetFormFieldValue, form, note)


def _wide(function: Callable[..., int], *arguments: object) -> str:
    """The text that one of PDFium's functions writes as UTF-16 with a zero at its end."""
    num_bytes = function(*arguments, None, 0)
    if num_bytes <= 2:
        return ""
    units = (ctypes.c_ushort * (num_bytes // 2))()
    function(*arguments, units, num_bytes)
    return bytes(units)[: num_bytes - 2].decode("utf-16-le", "replace")


def _place_of(line: TextLine, lines: list[TextLine]) -> int:
    """Behind the line that stands to its left, or before the first one below it."""
    left, top, _, bottom = line.box
    middle = (top + bottom) / 2
    beside = [
        (other.box[0], index)
        for index, other in enumerate(lines)
        if other.box[1] <= middle <= other.box[3] and other.box[0] <= left
    ]
    if beside:
        return max(beside)[1] + 1
    below = (index for index, other in enumerate(lines) if other.box[1] > middle)
    return next(below, len(lines))


def _image_share(page: PdfPage, upright: _Upright) -> float:
    """Of the page's area, what images cover; each is taken for the box around it."""
    covered = [bytearray(_GRID) for _ in range(_GRID)]
    for a, b, c, d, x, y in _images(page):
        xs, ys = (x, x + a, x + c, x + a + c), (y, y + b, y + d, y + b + d)
        left, top, right, bottom = (round(_GRID * share) for share in upright.box(xs, ys))
        for row in covered[top:bottom]:
            row[left:right] = b"\1" * (right - left)
    return sum(map(sum, covered)) / _GRID**2


def _images(page: PdfPage) -> Iterator[_Matrix]:
    """Of every image on the page, the matrix that takes the unit square to where it is drawn."""
    import pypdfium2.raw as pdfium

    budget = _MOST_OBJECTS

    def within(
        holder: object,
        count: Callable[..., int],
        get: Callable[..., object],
        outer: _Matrix,
        depth: int,
    ) -> Iterator[_Matrix]:
        nonlocal budget
        for index in range(max(count(holder), 0)):
            budget -= 1
            if budget < 0:
                return
            drawn = get(holder, index)
            kind = pdfium.FPDFPageObj_GetType(drawn)
            if kind not in (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_FORM):
                continue
            own = pdfium.FS_MATRIX()
            if not pdfium.FPDFPageObj_GetMatrix(drawn, own):
                continue
            matrix = _after((own.a, own.b, own.c, own.d, own.e, own.f), outer)
            if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
                yield matrix
            elif depth < _MOST_NESTED_FORMS:
                count_form, get_form = (
                    pdfium.FPDFFormObj_CountObjects,
                    pdfium.FPDFFormObj_GetObject,
                )
                yield from within(drawn, count_form, get_form, matrix, depth + 1)

    yield from within(
        page, pdfium.FPDFPage_CountObjects, pdfium.FPDFPage_GetObject, (1, 0, 0, 1, 0, 0), 0
    )


def _after(inner: _Matrix, outer: _Matrix) -> _Matrix:
    """The matrix that first does what `inner` does (ISO 32000-1, 8.3.4)."""
    a, b, c, d, e, f = inner
    p, q, r, s, t, u = outer
    return (
        *(a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s),
        *(e * p + f * r + t, e * q + f * s + u),
    )
