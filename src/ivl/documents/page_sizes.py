"""The sizes of pages, for planning: nothing is read of them but their size."""

from __future__ import annotations

from ivl.documents.pdf import open_pdf
from ivl.documents.reading import open_pages
from ivl.footprint.workload import PageSize
from ivl.paths import local_path

PDF_MAGIC = b"%PDF-"
PDF_DPI = 200
"""Pages of PDF files are drawn at so many pixels an inch; the grid hardly depends on it."""
POINTS_PER_INCH = 72


def page_sizes(name: str) -> list[PageSize]:
    """The pages of an image or a PDF file. RequestError when it is neither, or damaged."""
    try:
        with local_path(name).open("rb") as file:
            is_pdf = PDF_MAGIC in file.read(1024)
    except OSError:
        is_pdf = False  # what is wrong is said where images are opened
    if is_pdf:
        return _pdf_sizes(name)
    found = []
    for page in open_pages(name):
        width, height = page.load().size
        found.append(PageSize(title=page.title, width=width, height=height))
    return found


def _pdf_sizes(name: str) -> list[PageSize]:
    document = open_pdf(local_path(name), name)
    try:
        sizes = [document.get_page_size(number) for number in range(len(document))]
    finally:
        document.close()
    scale = PDF_DPI / POINTS_PER_INCH
    return [
        PageSize(
            title=f"{name}, page {number} of {len(sizes)}" if len(sizes) > 1 else name,
            width=max(1, round(width * scale)),
            height=max(1, round(height * scale)),
        )
        for number, (width, height) in enumerate(sizes, start=1)
    ]
