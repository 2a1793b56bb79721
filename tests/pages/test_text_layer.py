"""What a PDF says that a page says: characters, where they are, and what speaks against them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ivl.pages.reader import Page, open_pages
from ivl.pages.text_layer import TextLayer
from tests.pages.pdf_files import FONT, pdf, pdf_of_objects, stream

A4 = (595, 842)
CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
ONE_PAGE = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"


def page_of(content: bytes, keys: bytes = b"", *more: bytes, font: bytes = FONT) -> Page:
    """A page of 200 x 100 points with this content and these keys; `more` are objects 6, ..."""
    [page] = open_pages(
        pdf_of_objects(
            *(CATALOG, ONE_PAGE),
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents 4 0 R"
            b"/Resources<</Font<</F 5 0 R>>/XObject<</X 6 0 R>>>>%s>>" % keys,
            *(stream(content), font, *more),
        )
    )
    return page


def layer_of(page: Page) -> TextLayer:
    layer = page.text_layer()
    assert layer is not None
    return layer


def test_lines_are_given_as_they_are_drawn() -> None:
    layer = layer_of(open_pages(pdf((A4, "RECEIPT\nCoffee 3.50\nTOTAL 5.50")))[0])
    assert layer.text == "RECEIPT\nCoffee 3.50\nTOTAL 5.50"
    assert [line.text for line in layer.lines] == layer.text.split("\n")
    assert (layer.hidden_share, layer.image_share, layer.num_unmapped) == (0, 0, 0)
    tops = [line.box[1] for line in layer.lines]
    assert tops == sorted(tops)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("crop", [b"", b"/CropBox[20 10 180 90]", b"/CropBox[-50 10 500 90]"])
def test_boxes_are_where_the_ink_is(rotate: int, crop: bytes) -> None:
    page = page_of(b"BT /F 20 Tf 40 60 Td (Ink) Tj ET", crop + b"/Rotate %d" % rotate)
    [line] = layer_of(page).lines
    dark = np.asarray(page.load().convert("L")) < 128
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    height, width = dark.shape
    ink = (columns[0] / width, rows[0] / height, columns[-1] / width, rows[-1] / height)
    assert line.text == "Ink"
    assert line.box == pytest.approx(ink, abs=0.02)


def test_a_hyphen_ends_its_line() -> None:
    """PDFium joins such lines and gives no hyphen at all."""
    layer = layer_of(open_pages(pdf((A4, "an exam-\nple of it")))[0])
    assert layer.text == "an exam-\nple of it"
    assert len(layer.lines) == 2
    assert layer.num_unmapped == 0


def test_characters_have_the_values_that_their_font_gives_them() -> None:
    """Beyond the first plane, a ligature, and Hebrew, which is drawn from its end."""
    table = stream(
        b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> "
        b"endcodespacerange 5 beginbfchar <41> <D83DDE00> <42> <00660069> "
        b"<43> <05D0> <44> <05D1> <45> <05D2> endbfchar endcmap"
    )
    font = FONT[:-2] + b"/ToUnicode 6 0 R>>"
    page = page_of(b"BT /F 20 Tf 10 60 Td (xA Bnd) Tj 0 -30 Td (EDC) Tj ET", b"", table, font=font)
    assert layer_of(page).text == "x\N{GRINNING FACE} find\n\N{HEBREW LETTER ALEF}\u05d1\u05d2"


def test_characters_that_say_nothing_are_counted() -> None:
    table = stream(
        b"begincmap 1 begincodespacerange <00> <ff> endcodespacerange "
        b"2 beginbfchar <41> <E000> <42> <FFFD> endbfchar endcmap"
    )
    font = FONT[:-2] + b"/ToUnicode 6 0 R>>"
    layer = layer_of(page_of(b"BT /F 20 Tf 10 60 Td (xAyBz\\001) Tj ET", b"", table, font=font))
    assert layer.num_unmapped == 3


def test_what_is_drawn_invisibly_is_counted() -> None:
    page = page_of(b"BT /F 20 Tf 10 60 Td (seen) Tj 3 Tr 0 -30 Td (not seen at) Tj ET")
    layer = layer_of(page)
    assert layer.text == "seen\nnot seen at"
    assert layer.hidden_share == pytest.approx(9 / 13)
    assert np.asarray(page.load())[-60:].min() == 255


IMAGE = stream(
    b"\x00",
    b"/Type/XObject/Subtype/Image/Width 1/Height 1/ColorSpace/DeviceGray/BitsPerComponent 8",
)
TEXT = b" BT /F 20 Tf 10 60 Td (text) Tj ET"


def test_the_area_that_images_cover() -> None:
    """Also within forms, turned, beyond the page's edges, and twice at the same place."""
    half = b"q 100 0 0 100 0 0 cm /X Do Q "
    assert layer_of(page_of(half + TEXT, b"", IMAGE)).image_share == pytest.approx(0.5, abs=0.01)
    assert layer_of(page_of(half * 2 + TEXT, b"", IMAGE)).image_share == pytest.approx(
        0.5, abs=0.01
    )
    page = page_of(b"q 900 0 0 100 100 0 cm /X Do Q" + TEXT, b"/Rotate 90", IMAGE)
    assert layer_of(page).image_share == pytest.approx(0.5, abs=0.01)
    form = stream(
        b"q 0 50 -50 0 50 0 cm /I Do Q",
        b"/Type/XObject/Subtype/Form/BBox[0 0 100 100]/Matrix[1 0 0 1 10 10]"
        b"/Resources<</XObject<</I 7 0 R>>>>",
    )
    page = page_of(b"q 2 0 0 1 0 0 cm /X Do Q" + TEXT, b"", form, IMAGE)
    assert layer_of(page).image_share == pytest.approx(0.25, abs=0.01)


def test_what_a_form_was_filled_in_with_stands_beside_its_label() -> None:
    field = (
        b"<</Type/Annot/Subtype/Widget/FT/Tx/T(%s)/V(%s)/F %d/Ff %d/Rect[100 %d 190 %d]"
        b"/DA(/F 12 Tf 0 g)>>"
    )
    [page] = open_pages(
        pdf_of_objects(
            b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[6 0 R 7 0 R 8 0 R]>>>>",
            ONE_PAGE,
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents 4 0 R"
            b"/Annots[6 0 R 7 0 R 8 0 R 9 0 R]/Resources<</Font<</F 5 0 R>>>>>>",
            stream(b"BT /F 12 Tf 10 65 Td (Name) Tj 0 -30 Td (Town) Tj ET"),
            FONT,
            field % (b"name", b"Smith", 4, 0, 60, 80),
            field % (b"secret", b"swordfish", 4, 1 << 13, 60, 80),
            field % (b"hidden", b"unseen", 2, 0, 60, 80),
            b"<</Type/Annot/Subtype/FreeText/Contents(Paris)/F 4/Rect[100 30 190 50]"
            b"/DA(/F 12 Tf 0 g)>>",
        )
    )
    assert layer_of(page).text == "Name\nSmith\nTown\nParis"


def test_what_has_no_text_has_no_layer() -> None:
    assert open_pages(pdf((A4, "1 0 0")))[0].text_layer() is None
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    assert open_pages(file.getvalue())[0].text_layer() is None
    assert open_pages(Image.new("RGB", (8, 8)))[0].text_layer() is None
