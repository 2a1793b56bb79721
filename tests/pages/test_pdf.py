"""PDF files through the one reader: how pages are drawn, and what cannot be."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivl.errors import RequestError
from ivl.pages.pdf import PAGE_PIXELS, PdfFile
from ivl.pages.reader import Page, load_image, load_pages, open_pages, open_together
from ivl.prompt.tiles import tile_grid
from tests.pages.pdf_files import (
    DAMAGED,
    ENCRYPTED,
    FONT,
    NO_PAGES,
    pdf,
    pdf_of_objects,
    stream,
)

A4 = (595, 842)
THREE = pdf((A4, "1 0 0"), ((842, 595), "0 1 0"), ((200, 200), "0 0 1"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for every page that is drawn."""
    pages: list[int] = []
    load = PdfFile.load

    def count(self: PdfFile, page: int) -> Image.Image:
        pages.append(page)
        return load(self, page)

    monkeypatch.setattr(PdfFile, "load", count)
    return pages


def test_pages_are_drawn_one_by_one_when_they_are_wanted(tmp_path: Path, drawn: list[int]) -> None:
    path = tmp_path / "bericht ä.pdf"
    path.write_bytes(THREE)
    pages = open_pages(path)
    assert [page.title for page in pages] == [f"{path}, page {n} of 3" for n in (1, 2, 3)]
    sizes = [page.size_px() for page in pages]
    assert [page.title for page in open_together(path)] == [page.title for page in pages]
    assert drawn == []
    for page, size, colour in zip(pages, sizes, np.eye(3), strict=True):
        image = page.load()
        assert (image.mode, image.size) == ("RGB", size)
        assert (np.asarray(image) == 255 * colour).all()
    assert len(drawn) == 3


def test_every_kind_of_source_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.PDF"
    path.write_bytes(THREE)

    class OnlyReads(io.RawIOBase):
        """Neither seeks nor fills memory, as the answer of a server."""

        def __init__(self) -> None:
            self.file = io.BytesIO(THREE)

        def read(self, size: int = -1) -> bytes:
            return self.file.read(size)

    with path.open("rb") as file:
        for source in (path, str(path), THREE, file, io.BytesIO(THREE), OnlyReads()):
            assert [page.getpixel((5, 5)) for page in load_pages(source)][2] == (0, 0, 255)
        assert not file.closed
    assert load_image(THREE, frame=1).getpixel((5, 5)) == (0, 255, 0)
    with pytest.raises(RequestError, match="has 3 pages, and one picture is wanted"):
        load_image(THREE, frame=None)
    with pytest.raises(RequestError, match="no frame 3"):
        load_image(THREE, frame=3)
    with pytest.raises(RequestError, match="has 3 pages; at most 2"):
        open_together(THREE, most=2)
    with pytest.raises(RequestError, match="3 pages together"):
        load_pages(THREE, max_pixels=100_000)


def test_a_page_is_a_source_too() -> None:
    page = open_pages(THREE)[1]
    assert load_image(page).getpixel((5, 5)) == (0, 255, 0)
    assert open_pages(page) == open_together(page) == [page]
    assert np.asarray(load_pages(page)[0]).shape == np.asarray(page.load()).shape


def test_a_page_has_pixels_for_the_tiles_that_it_is_cut_into() -> None:
    """As many as 24 tiles have: A4 is 2 x 3 of 12 tiles, and 4 x 6 of 24."""
    [page] = open_pages(pdf((A4, "1 0 0")))
    width, height = page.size_px()
    assert width * height == pytest.approx(PAGE_PIXELS, rel=0.01)
    assert tile_grid(width, height, max_tiles=12) == (2, 3)
    assert tile_grid(width, height, max_tiles=24) == (4, 6)
    assert width >= 4 * 448
    assert height >= 0.96 * 6 * 448


def test_a_small_page_is_drawn_as_it_would_be_printed() -> None:
    assert open_pages(pdf(((72, 36), "1 0 0")))[0].size_px() == (300, 150)


def test_no_page_has_more_pixels_than_allowed() -> None:
    [page] = open_pages(pdf((A4, "1 0 0")))
    image = page.load(max_pixels=50_000)
    assert 49_000 <= image.width * image.height <= 51_000
    assert image.size == page.size_px(max_pixels=50_000)
    assert page.load().size == page.size_px()


@pytest.mark.parametrize("size", [(595.276, 841.89), (0.4, 3), (3, 1000), (14400, 14400), (50, 7)])
def test_the_size_is_known_before_the_page_is_drawn(size: tuple[float, float]) -> None:
    [page] = open_pages(pdf((size, "1 0 0")))
    assert page.load().size == page.size_px()


def test_a_turned_page_is_upright() -> None:
    [page] = open_pages(pdf(((100, 200), "1 0 0"), keys=b"/Rotate 90"))
    width, height = page.load().size
    assert width == 2 * height
    assert page.size_px() == (width, height)


def test_what_a_form_was_filled_in_with_is_drawn() -> None:
    data = pdf_of_objects(
        b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]>>>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1/MediaBox[0 0 200 100]>>",
        b"<</Type/Page/Parent 2 0 R/Annots[4 0 R]>>",
        b"<</Type/Annot/Subtype/Widget/FT/Tx/T(name)/V(Smith)/F 4/Rect[20 20 70 40]"
        b"/DA(/F 12 Tf 0 g)/AP<</N 5 0 R>>>>",
        stream(
            b"BT /F 12 Tf 2 5 Td (Smith) Tj ET",
            b"/Type/XObject/Subtype/Form/BBox[0 0 50 20]/Resources<</Font<</F 6 0 R>>>>",
        ),
        FONT,
    )
    assert np.asarray(load_image(data)).min() < 100


def test_other_threads_may_read_at_the_same_time() -> None:
    page = open_pages(THREE)[1]
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda _: page.load(), range(24)))
    assert all(image.getpixel((5, 5)) == (0, 255, 0) for image in images)


@pytest.mark.parametrize(
    "before", [b"", b"\xef\xbb\xbf", b"\x1b%-12345X@PJL JOB\r\n@PJL ENTER LANGUAGE=PDF\r\n", b"\n "]
)
def test_the_header_may_come_behind_other_lines(before: bytes) -> None:
    assert len(open_pages(before + THREE)) == 3


def test_a_text_about_pdfs_is_a_text() -> None:
    with pytest.raises(RequestError, match="is a text file"):
        open_pages(b"A file that begins with %PDF-1.7 is a PDF.\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ENCRYPTED, "needs a password"),
        (DAMAGED, "has no pages, is damaged or incomplete"),
        (NO_PAGES, "has no pages, is damaged or incomplete"),
        (THREE[:200], "has no pages, is damaged or incomplete"),
        (b"", "is empty"),
    ],
)
def test_files_that_cannot_be_opened_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(RequestError, match=message) as caught:
            open_pages(source)
        assert caught.value.hint
        assert caught.value.message.startswith(str(path) if source is path else "The ")


def test_an_earlier_password_is_not_taken_for_the_reason_of_later_damage() -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match="password"):
            open_pages(ENCRYPTED)
        with pytest.raises(RequestError, match="damaged"):
            open_pages(NO_PAGES)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (None, "is damaged"),
        (((0.01, 10_000), "1 0 0"), "is far too narrow"),
        (((200_000, 10), "1 0 0"), "has no usable size"),
    ],
)
def test_a_page_that_cannot_be_drawn_leaves_the_others(
    tmp_path: Path, page: tuple[tuple[float, float], str] | None, message: str
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(((100, 100), "1 0 0"), page, ((100, 100), "0 0 1")))
    pages = open_pages(path)
    for act in (Page.load, Page.size_px):
        with pytest.raises(RequestError, match=f"a.pdf, page 2 of 3 {message}") as caught:
            act(pages[1])
        assert caught.value.hint
    assert pages[2].load().getpixel((5, 5)) == (0, 0, 255)


def test_a_file_that_has_lost_pages_since_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(THREE)
    page = open_pages(path)[2]
    path.write_bytes(pdf((A4, "1 0 0")))
    with pytest.raises(RequestError, match="no longer has a page 3"):
        page.load()


def test_pdfium_is_loaded_for_pdfs_alone() -> None:
    import subprocess

    code = (
        "import sys\nfrom PIL import Image\nfrom ivl.pages.reader import load_image\n"
        "load_image(Image.new('RGB', (8, 8)))\nsys.exit('pypdfium2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
