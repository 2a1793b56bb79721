"""PDFs of the corpus: readers find in them what was put there. PDFium is the reader."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pypdfium2
import pytest
from PIL import Image

pytest.importorskip("training.pdf_writer", reason="training/ is not in the installed package")
from training.contents import build
from training.pdf_writer import FONTS, PdfPage, PlacedText, text_width_pt, write_pdf
from training.sheets import beside, set_sheet

KINDS = ("receipt", "invoice", "letter", "table", "label", "tag", "note")


def sheet_page(kind: str, seed: int = 0) -> PdfPage:
    sheet = set_sheet(*drawn(kind, seed))
    return PdfPage(size_pt=sheet.size_pt, texts=sheet.texts, rules=sheet.rules)


def drawn(kind: str, seed: int):
    rng = np.random.default_rng(seed)
    return rng, build(rng, kind, "eval", 12)


def look(data: bytes, scale: float = 2.0) -> np.ndarray:
    """The first page of a file, drawn: int16 (height, width)."""
    with pypdfium2.PdfDocument(data) as document:
        image = document[0].render(scale=scale).to_pil().convert("L")
    return np.asarray(image).astype(np.int16)


def words_of(data: bytes, number: int = 0) -> list[str]:
    """What the text layer of a page says."""
    with pypdfium2.PdfDocument(data) as document:
        text = document[number].get_textpage()
        try:
            return text.get_text_range().split()
        finally:
            text.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_of_a_sheet_says_what_stands_on_it(kind: str) -> None:
    page = sheet_page(kind)
    wanted = " ".join(text.text for text in page.texts).split()
    assert words_of(write_pdf([page])) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_sheet_is_on_it(kind: str) -> None:
    for seed in range(5):
        sheet = set_sheet(*drawn(kind, seed))
        width, height = sheet.size_pt
        for text in sheet.texts:
            assert text.x > 0
            assert text.x + text_width_pt(text.text, text.font, text.size_pt) < width
            assert 0.5 * text.size_pt < text.y < height
        baselines = [text.y for text in sheet.texts]
        assert baselines == sorted(baselines)
        assert 0.4 < width / height < 2.1


def test_columns_are_read_one_after_the_other() -> None:
    left, right = (set_sheet(*drawn("note", seed)) for seed in (1, 2))
    both = beside(left, right)
    assert both.text == f"{left.text}\n{right.text}"
    assert min(text.x for text in both.texts[len(left.texts) :]) > left.size_pt[0]
    data = write_pdf([PdfPage(size_pt=both.size_pt, texts=both.texts)])
    assert sorted(words_of(data)) == sorted(both.text.split())


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_a_page_that_is_stored_turned_looks_upright(rotate: int) -> None:
    page = sheet_page("letter")
    upright, turned = look(write_pdf([page])), look(write_pdf([replace(page, rotate=rotate)]))
    assert upright.shape == turned.shape
    # Letters fall otherwise on the pixels when they are drawn from another side.
    assert np.abs(upright - turned).mean() < 6
    assert np.abs(upright - turned[::-1, ::-1]).mean() > 12
    with pypdfium2.PdfDocument(write_pdf([replace(page, rotate=rotate)])) as document:
        assert document[0].get_rotation() == rotate


def test_letters_can_be_taken_for_others_and_look_the_same() -> None:
    page = sheet_page("note")
    other = replace(page, says={"e": "x", "a": "q"})
    np.testing.assert_array_equal(look(write_pdf([page])), look(write_pdf([other])))
    said = " ".join(text.text for text in page.texts).replace("e", "x").replace("a", "q")
    assert words_of(write_pdf([other])) == said.split()


def test_a_hidden_layer_is_found_and_not_seen() -> None:
    picture = Image.new("L", (300, 200), 200)
    hidden = PlacedText(text="(50%) \\ done", x=20, y=60, size_pt=20, is_hidden=True, width_pt=90)
    plain = PdfPage(size_pt=(144.0, 96.0), image=picture)
    both = replace(plain, texts=(hidden,))
    np.testing.assert_array_equal(look(write_pdf([plain])), look(write_pdf([both])))
    assert words_of(write_pdf([both])) == ["(50%)", "\\", "done"]


@pytest.mark.parametrize("quality", [None, 90])
def test_a_picture_fills_its_page(quality: int | None) -> None:
    rng = np.random.default_rng(0)
    levels = np.kron(rng.integers(0, 256, (12, 9)), np.ones((10, 10))).astype(np.uint8)
    page = PdfPage(size_pt=(90.0, 120.0), image=Image.fromarray(levels), jpeg_quality=quality)
    seen = look(write_pdf([page]), scale=1.0)
    assert seen.shape == levels.shape
    assert np.abs(seen - levels).mean() < 8


def test_pages_are_in_order_and_the_same_pages_give_the_same_bytes() -> None:
    pages = [sheet_page(kind) for kind in KINDS]
    data = write_pdf(pages)
    assert data == write_pdf(pages)
    for number, page in enumerate(pages):
        assert words_of(data, number) == " ".join(text.text for text in page.texts).split()


def test_widths_are_those_of_the_fonts() -> None:
    assert text_width_pt("iiii", "Courier", 10) == pytest.approx(24)
    assert text_width_pt("i", "Helvetica", 1000) == pytest.approx(222)
    assert all(text_width_pt("Wide", font, 12) > 0 for font in FONTS)


def test_what_the_fonts_do_not_have_is_refused() -> None:
    text = PlacedText(text="5 €", x=10, y=20, size_pt=10)
    with pytest.raises(ValueError, match="ASCII"):
        write_pdf([PdfPage(size_pt=(100.0, 100.0), texts=(text,))])
