"""Passwords, labels and attachments of PDFs, and the document that stays open between pages."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import zlib
from pathlib import Path

import pytest

from ivl.errors import LockedError, RequestError
from ivl.pages import pdf as pdf_module
from ivl.pages import pdf_worker
from ivl.pages.pdf_process import PdfProcess
from ivl.pages.reader import Page, load_image, open_pages, open_together
from tests.pages.broken_pdfs import KINDS, TWO
from tests.pages.pdf_files import FONT, locked_pdf, pdf, pdf_of_objects, stream

RED, BLUE = (255, 0, 0), (0, 0, 255)


def colours(pages: list[Page]) -> list[object]:
    return [page.load().getpixel((5, 5)) for page in pages]


def test_a_password_among_others_opens_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(locked_pdf(b"secret"))
    for source in (path, path.read_bytes()):
        for known in ("secret", "owner"):
            pages = open_pages(source, passwords=["wrong", known, "other"])
            assert colours(pages) == [RED, BLUE]
            assert [page.size_px() for page in pages] == [(417, 417)] * 2
            assert known not in repr(pages)
    # It may be shut in between, and go to another process.
    open_pages(TWO)[0].load()
    assert colours(pages) == [RED, BLUE]
    assert colours(pickle.loads(pickle.dumps(pages))) == [RED, BLUE]


@pytest.mark.parametrize(
    ("password", "stored"),
    [
        ("Zoë", "Zoë".encode("latin-1")),
        ("Zoë", "Zoë".encode()),
        ("5 €", b"5 \xa0"),  # PDFDocEncoding
        ("5 €", b"5 \x80"),  # Windows-1252
        ("“Ž”", b"\x8d\x99\x8e"),
        ("Zoe\N{COMBINING DIAERESIS}", "Zoë".encode("latin-1")),
        ("日本", "日本".encode()),
        ("with spaces ", b"with spaces "),
        ("longer than the 32 bytes that the format has", b"longer than the 32 bytes that th"),
    ],
)
def test_a_password_is_tried_in_the_encodings_of_its_time(password: str, stored: bytes) -> None:
    assert colours(open_pages(locked_pdf(stored), passwords=[password])) == [RED, BLUE]


def test_a_locked_file_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(locked_pdf(b"secret"))
    with pytest.raises(LockedError, match="needs a password") as caught:
        open_pages(path)
    assert "`passwords`" in caught.value.hint
    with pytest.raises(LockedError, match="none of those given opens it") as caught:
        open_pages(path, passwords=["swordfish", "tuna"])
    assert "`passwords`" in caught.value.hint
    assert "swordfish" not in str(caught.value)
    # Where none can be given, none is asked for.
    for open_it in (load_image, open_together):
        with pytest.raises(LockedError, match="needs a password") as caught:
            open_it(path)
        assert caught.value.hint == "Save it without one."


def test_a_file_that_has_got_a_password_since(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(TWO)
    page = open_pages(path)[1]
    path.write_bytes(locked_pdf(b"secret"))
    with pytest.raises(LockedError):
        page.load()


def test_what_its_owner_forbids_does_not_keep_a_file_from_being_read() -> None:
    assert colours(open_pages(locked_pdf(b""))) == [RED, BLUE]
    assert colours(open_pages(locked_pdf(b""), passwords=["wrong"])) == [RED, BLUE]


def test_pages_keep_the_labels_that_the_file_gives_them() -> None:
    labels = b"<</Nums[0<</S/r/St 4>>2<</S/D>>4<</P(A-)/S/D/St 3>>5<<>>]>>"
    kids = b"3 0 R " * 6
    data = pdf_of_objects(
        b"<</Type/Catalog/Pages 2 0 R/PageLabels %s>>" % labels,
        b"<</Type/Pages/Kids[%s]/Count 6/MediaBox[0 0 9 9]>>" % kids,
        b"<</Type/Page/Parent 2 0 R>>",
    )
    assert [page.label for page in open_pages(data)] == ["iv", "v", "1", "2", "A-3", None]
    assert [page.label for page in open_pages(TWO)] == [None, None]
    same = data.replace(labels, b"<</Nums[0<</S/D>>]>>".ljust(len(labels)))
    assert [page.label for page in open_pages(same)] == [None] * 6


def test_files_inside_a_file_are_counted() -> None:
    [page] = open_pages(KINDS["files inside"].data)
    assert page.num_attachments == 1
    assert open_pages(TWO)[0].num_attachments == 0


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PDFium is in this process, and the names of the files are noted that it opens and closes."""
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(pdf_module, "pdf_process", PdfProcess())
    noted: list[str] = []

    class Noting(pdf_worker.OpenDocument):
        def __init__(self, file: object, label: str, *rest: object, **more: object) -> None:
            super().__init__(file, label, *rest, **more)  # type: ignore[arg-type]
            self._name = Path(label).name
            noted.append(f"open {self._name}")

        def close(self) -> None:
            noted.append(f"close {self._name}")
            super().close()

    monkeypatch.setattr(pdf_worker, "OpenDocument", Noting)
    return noted


def test_a_file_is_opened_once_for_all_of_its_pages(tmp_path: Path, opened: list[str]) -> None:
    a, b = tmp_path / "a.pdf", tmp_path / "b.pdf"
    for path in (a, b):
        path.write_bytes(TWO)
    pages = open_pages(a)
    assert colours(pages) == [RED, BLUE]
    assert [page.text_layer() for page in pages] == [None, None]
    assert opened == ["open a.pdf"]
    others = open_pages(b)  # one is open at a time
    assert opened == ["open a.pdf", "close a.pdf", "open b.pdf"]
    del pages
    gc.collect()
    assert len(opened) == 3
    del others  # and none when nobody has a page of it
    gc.collect()
    assert opened[3:] == ["close b.pdf"]
    load_image(a, frame=1)
    gc.collect()
    assert opened[4:] == ["open a.pdf", "close a.pdf"]


def test_a_file_that_has_changed_is_opened_anew(tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(TWO)
    page = open_pages(path)[1]
    path.write_bytes(TWO.replace(b"0 0 1 rg", b"0 1 0 rg"))
    os.utime(path, ns=(1, 1))
    assert page.load().getpixel((5, 5)) == (0, 255, 0)
    assert opened == ["open a.pdf", "close a.pdf", "open a.pdf"]


def test_bytes_are_opened_once_too(opened: list[str]) -> None:
    assert colours(open_pages(TWO, "a.pdf")) == [RED, BLUE]
    gc.collect()
    assert opened == ["open a.pdf", "close a.pdf"]


def test_a_long_document_is_opened_anew_now_and_then(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf_worker, "MOST_PAGES_OPEN", 2)
    pages = open_pages(pdf(*[((9, 9), "1 0 0")] * 5), "a.pdf")
    for page in pages:
        page.load()
    assert opened.count("open a.pdf") == 3


def resident_megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def long_document(num_pages: int) -> bytes:
    """Each page with 800 characters and a picture of 120 kB of its own."""
    objects = [b"", b"", FONT]
    for number in range(num_pages):
        lines = " ".join(f"(line {n} of page {number} {'abcd ' * 10}) Tj T*" for n in range(12))
        picture = zlib.compress(number.to_bytes(4, "big") * 30_000, 1)
        objects += [
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents %d 0 R"
            b"/Resources<</Font<</F 3 0 R>>/XObject<</X %d 0 R>>>>>>"
            % (len(objects) + 2, len(objects) + 3),
            stream(f"BT /F 10 Tf 20 TL 30 800 Td {lines} ET q 200 0 0 200 9 9 cm /X Do Q".encode()),
            stream(
                picture,
                b"/Filter/FlateDecode/Type/XObject/Subtype/Image/Width 200/Height 200"
                b"/ColorSpace/DeviceRGB/BitsPerComponent 8",
            ),
        ]
    kids = b" ".join(b"%d 0 R" % (4 + 3 * number) for number in range(num_pages))
    objects[0] = b"<</Type/Catalog/Pages 2 0 R>>"
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, num_pages)
    return pdf_of_objects(*objects)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what processes take")
def test_memory_after_2000_pages_is_that_after_50(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(long_document(2000))
    taken = {}
    for page in open_pages(path):
        page.load(max_pixels=50_000)
        if page.number % 20 == 0:
            assert page.text_layer()
        if page.number in (50, 2000):
            process = pdf_module.pdf_process._process
            assert process is not None
            taken[page.number] = [resident_megabytes(pid) for pid in (os.getpid(), process.pid)]
    here, there = (after - before for before, after in zip(taken[50], taken[2000], strict=True))
    assert here < 10
    assert there < 15


def test_a_page_in_the_middle_of_damage_has_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(KINDS["count too high"].data)
    last = open_pages(path)[-1]
    with pytest.raises(RequestError, match=r"a.pdf, page 3 of 3 is missing: .* has 1000 pages"):
        last.load()
