"""A corpus of documents with truth: `python -m training.corpus OUT`.

300 pages in 40 PDFs: pages that the bundled model reads, clean, scanned and born digital, and those
that are hard for whoever reads documents: blank ones (also with the back showing through), turned
ones, faded ones, two columns, 25 lines, text layers that are wrong. `OUT/truth.jsonl` has a line
for each page, in order: what stands on it, and what a checker needs. The same seed gives the same
files, on machines with the same fonts and libraries.

Words and layouts are those of the evaluation's side of the split, which training never saw; fonts
are the common ones and, on what is born digital, the standard fonts of PDFs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from training import fonts, scans
from training.contents import build
from training.pages import Page, make_page
from training.pdf_writer import PdfPage, PlacedText, Turn, write_pdf
from training.sheets import Sheet, beside, set_sheet
from training.words import pick

Sort: TypeAlias = Literal[
    "clean", "scan", "digital", "searchable", "table", "turned", "rotated", "faded", "long",
    "columns", "wrong layer", "blank", "blank scan",
]  # fmt: skip
Layer: TypeAlias = Literal["none", "right", "wrong"]

PAGES_OF_SORT: dict[Sort, int] = {
    "clean": 75, "scan": 58, "digital": 36, "searchable": 8, "table": 21, "turned": 21,
    "rotated": 12, "faded": 12, "long": 15, "columns": 10, "wrong layer": 12, "blank": 10,
    "blank scan": 10,
}  # fmt: skip
"""Of 300; of another number, as many in proportion."""
READABLE: tuple[Sort, ...] = ("clean", "scan", "digital", "searchable", "rotated")
"""What the bundled model was made for (docs/demo.md), once `/Rotate` is obeyed."""

KINDS = ("receipt", "note", "label", "invoice", "tag", "letter")
FAULTS = ("other page", "cipher", "garbled", "half")
FOLDERS = ("post", "archive/2025", "archive/2026")
MOST_PAGES = 30
SCAN_STRENGTH = 0.7
MAX_LINES, LONG_LINES = 10, 25
LONG_TRIES = 12
IMAGE_DPI = 150
"""Of pictures of pages: the longest page is then about as long as A4."""
A4_PT, A4_PX = (595.0, 842.0), (1075, 1520)
"""Pixels: as many as the grain of `training.scans` can have."""
TRUTH = "truth.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthPage:
    """What is true of a page of the corpus.

    path: of its PDF, below the corpus. page: from 1, of `pages`. sort: why it is in the corpus.
    kind: as of `training.pages`. text: what stands on it; a table's as Markdown. turned: by how
    many degrees, clockwise, the picture is turned that one sees when `/Rotate` is obeyed; a reader
    turns it back. rotate: the page's `/Rotate`. layer: whether there is a text layer, and whether
    it says what the page shows. layer_text: its lines. fault: what is wrong with one that is.
    """

    path: str
    page: int
    pages: int
    sort: Sort
    kind: str
    text: str
    turned: Turn = 0
    rotate: Turn = 0
    layer: Layer = "none"
    layer_text: str = ""
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A page and its truth, before it has a place."""

    page: PdfPage
    kind: str
    text: str
    turned: Turn = 0
    layer: Layer = "none"
    layer_text: str = ""
    fault: str | None = None


def main() -> None:
    options = parse_options()
    if options.font_root is not None:
        fonts.FONT_ROOT = options.font_root
    truth = write_corpus(
        options.out, num_pages=options.pages, num_documents=options.documents, seed=options.seed
    )
    sorts = [page.sort for page in truth]
    for sort in PAGES_OF_SORT:
        print(f"{sort:<12} {sorts.count(sort):4}")
    paths = {page.path for page in truth}
    size = sum((options.out / path).stat().st_size for path in paths)
    print(f"{len(truth)} pages in {len(paths)} documents, {size / 1e6:.1f} MB: {options.out}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder; files in it are replaced")
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font-root", type=Path, help="where the fonts are, if not installed")
    return parser.parse_args()


def write_corpus(
    out: Path, *, num_pages: int = 300, num_documents: int = 40, seed: int = 0
) -> list[TruthPage]:
    """Writes the PDFs and `truth.jsonl` into a folder, and gives the truth.

    ValueError for documents that would have no page, or more than 30. `ConfigError` when the fonts
    are not installed.
    """
    rng = np.random.default_rng([seed, num_pages, num_documents])
    lengths = _lengths(rng, num_pages, num_documents)
    sorts = _sorts(rng, num_pages)
    truth: list[TruthPage] = []
    for number, length in enumerate(lengths, 1):
        path = f"{FOLDERS[number % len(FOLDERS)]}/document-{number:02d}.pdf"
        made = []
        for sort in sorts[len(truth) : len(truth) + length]:
            # A generator for each page: a change to one sort leaves the others as they are.
            page_rng = np.random.default_rng([seed, num_pages, num_documents, len(truth)])
            page = MAKERS[sort](page_rng)
            made.append(page.page)
            truth.append(_truth(page, sort, path, len(made), length))
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(write_pdf(made))
    rows = [json.dumps(dataclasses.asdict(page)) + "\n" for page in truth]
    (out / TRUTH).write_text("".join(rows), encoding="utf-8")
    return truth


def load_truth(folder: Path) -> list[TruthPage]:
    """What is true of the pages of a corpus, in the order of their documents."""
    lines = (folder / TRUTH).read_text(encoding="utf-8").splitlines()
    return [TruthPage(**json.loads(line)) for line in lines]


def _truth(made: _Made, sort: Sort, path: str, page: int, pages: int) -> TruthPage:
    return TruthPage(
        path=path, page=page, pages=pages, sort=sort, kind=made.kind, text=made.text,
        turned=made.turned, rotate=made.page.rotate, layer=made.layer,
        layer_text=made.layer_text, fault=made.fault,
    )  # fmt: skip


def _lengths(rng: np.random.Generator, num_pages: int, num_documents: int) -> list[int]:
    """Pages of each document: many short ones, some long; where there are enough pages, one of a
    single page and one of 30."""
    if not num_documents <= num_pages <= MOST_PAGES * num_documents:
        raise ValueError(f"{num_pages} pages cannot be {num_documents} documents of 1 to 30 pages")
    lengths = [1] * num_documents
    left = num_pages - num_documents
    if num_documents > 1 and left >= MOST_PAGES + num_documents:
        lengths[-1], left = MOST_PAGES, left - (MOST_PAGES - 1)
    weights = np.exp(rng.normal(0.0, 1.0, num_documents))
    weights[0] = 0.0 if num_documents > 1 else 1.0
    while left:
        open_ = weights * (np.array(lengths) < MOST_PAGES)
        if not open_.sum():  # all but the one of a single page are full
            open_ = np.array(lengths) < MOST_PAGES
        lengths[int(rng.choice(num_documents, p=open_ / open_.sum()))] += 1
        left -= 1
    return [lengths[int(i)] for i in rng.permutation(num_documents)]


def _sorts(rng: np.random.Generator, num_pages: int) -> list[Sort]:
    """The sorts of all pages in random order; of each, its share, rounded by largest remainders."""
    whole = sum(PAGES_OF_SORT.values())
    shares: dict[Sort, float] = {
        sort: count * num_pages / whole for sort, count in PAGES_OF_SORT.items()
    }
    counts: dict[Sort, int] = {sort: int(share) for sort, share in shares.items()}
    by_rest = sorted(shares, key=lambda sort: counts[sort] - shares[sort])
    for sort in by_rest[: num_pages - sum(counts.values())]:
        counts[sort] += 1
    dealt: list[Sort] = [sort for sort, count in counts.items() for _ in range(count)]
    return [dealt[int(i)] for i in rng.permutation(num_pages)]


def _pictured(page: Page, *, quality: int | None, turned: Turn = 0, rotate: Turn = 0) -> _Made:
    """A page that is a picture, turned clockwise."""
    image = page.image.rotate(-turned, expand=True) if turned else page.image
    size = (image.width * 72 / IMAGE_DPI, image.height * 72 / IMAGE_DPI)
    shown = PdfPage(size_pt=size, image=image, jpeg_quality=quality, rotate=rotate)
    return _Made(page=shown, kind=page.kind, text=page.text, turned=turned)


def _readable(rng: np.random.Generator, *, scan: float, kind: str | None = None) -> Page:
    """A page that the bundled model was made for."""
    kind = kind or pick(rng, KINDS)
    lines = int(rng.integers(1, 7)) if kind == "tag" else int(rng.integers(3, MAX_LINES + 1))
    return make_page(rng, split="eval", max_lines=lines, scan=scan, kind=kind, fonts="common")


def _clean(rng: np.random.Generator) -> _Made:
    return _pictured(_readable(rng, scan=0.0), quality=None)


def _scan(rng: np.random.Generator) -> _Made:
    return _pictured(_readable(rng, scan=SCAN_STRENGTH), quality=85)


def _table(rng: np.random.Generator) -> _Made:
    scan = float(pick(rng, (0.0, SCAN_STRENGTH)))
    return _pictured(_readable(rng, scan=scan, kind="table"), quality=90)


def _turned(rng: np.random.Generator) -> _Made:
    """Of at least four lines: fewer have no direction that could be seen."""
    scan = float(pick(rng, (0.0, SCAN_STRENGTH)))
    kind = pick(rng, ("receipt", "note", "invoice", "letter"))
    while True:
        page = _readable(rng, scan=scan, kind=kind)
        if page.text.count("\n") >= 3:
            return _pictured(page, quality=90, turned=pick(rng, (90, 180, 270)))


def _rotated(rng: np.random.Generator) -> _Made:
    rotate: Turn = pick(rng, (90, 180, 270))
    if rng.random() < 0.5:
        made = _digital(rng)
        return dataclasses.replace(made, page=dataclasses.replace(made.page, rotate=rotate))
    return _pictured(_readable(rng, scan=0.0), quality=90, rotate=rotate)


def _faded(rng: np.random.Generator) -> _Made:
    """Clean print of which a fifth to two fifths of the contrast is left, under some grain."""
    page = _readable(rng, scan=0.0)
    image = scans.pale(page.image, float(rng.uniform(0.2, 0.4)))
    image = scans.add_noise(rng, image, 4.0)
    return _pictured(dataclasses.replace(page, image=image), quality=85)


def _long(rng: np.random.Generator) -> _Made:
    """The longest of a few pages: most have 20 to 25 lines."""
    kind = pick(rng, ("receipt", "note", "letter", "invoice"))
    scan = float(pick(rng, (0.0, SCAN_STRENGTH)))
    drawn = [
        make_page(rng, split="eval", max_lines=LONG_LINES, scan=scan, kind=kind, fonts="common")
        for _ in range(LONG_TRIES)
    ]
    return _pictured(max(drawn, key=lambda page: page.text.count("\n")), quality=90)


def _sheet(rng: np.random.Generator, kind: str, max_lines: int = MAX_LINES) -> Sheet:
    return set_sheet(rng, build(rng, kind, "eval", max_lines))


def _digital(rng: np.random.Generator) -> _Made:
    kind = pick(rng, (*KINDS, "table"))
    sheet = _sheet(rng, kind)
    return _of_sheet(sheet, kind)


def _of_sheet(sheet: Sheet, kind: str) -> _Made:
    page = PdfPage(size_pt=sheet.size_pt, texts=sheet.texts, rules=sheet.rules)
    return _Made(
        page=page, kind=kind, text=sheet.text, layer="right", layer_text=_lines_of(sheet.texts)
    )


def _lines_of(texts: Sequence[PlacedText]) -> str:
    """The lines of a layer: what has one baseline is one line."""
    lines: list[str] = []
    for i, text in enumerate(texts):
        if i and text.y == texts[i - 1].y:
            lines[-1] += " " + text.text
        else:
            lines.append(text.text)
    return "\n".join(lines)


def _columns(rng: np.random.Generator) -> _Made:
    """The longest two of a few notes."""
    notes = [_sheet(rng, "note", 12) for _ in range(LONG_TRIES)]
    left, right = sorted(notes, key=lambda note: -note.text.count("\n"))[:2]
    return _of_sheet(beside(left, right), "note")


def _hidden_layer(page: Page, lines: Sequence[str]) -> tuple[PlacedText, ...]:
    """`lines` behind the places of the page's own lines; those for which there is none, below."""
    scale = 72 / IMAGE_DPI
    placed, start = [], 0
    own = page.text.split("\n")
    height = page.image.height * scale
    for number, line in enumerate(lines):
        left, top, right, bottom = 10.0, height - 12.0, page.image.width * scale - 10.0, height
        if number < len(own):
            boxes = page.boxes[start : start + len(own[number])]
            start += len(own[number]) + 1
            x0, y0 = np.nanmin(boxes[:, :2], axis=0)
            x1, y1 = np.nanmax(boxes[:, 2:], axis=0)
            left, top, right, bottom = (float(edge) * scale for edge in (x0, y0, x1, y1))
        size = max(1.0, bottom - top)
        placed.append(
            PlacedText(
                text=line,
                x=left,
                y=bottom - 0.25 * size,
                size_pt=size,
                width_pt=max(1.0, right - left),
                is_hidden=True,
            )
        )
    return tuple(placed)


def _with_layer(made: _Made, page: Page, lines: Sequence[str], fault: str | None) -> _Made:
    """A picture of a page with an invisible layer of these lines."""
    return dataclasses.replace(
        made,
        page=dataclasses.replace(made.page, texts=_hidden_layer(page, lines)),
        layer="wrong" if fault else "right",
        layer_text="\n".join(lines),
        fault=fault,
    )


def _searchable(rng: np.random.Generator) -> _Made:
    """A scan with what a good program for reading scans has put behind it."""
    page = _readable(rng, scan=SCAN_STRENGTH)
    return _with_layer(_pictured(page, quality=85), page, page.text.split("\n"), None)


def _wrong_layer(rng: np.random.Generator) -> _Made:
    """Fluent text of another page, letters exchanged for others, letters misread, half of it."""
    fault = pick(rng, FAULTS)
    if fault == "cipher":
        letters = string.ascii_letters
        says = dict(zip(letters, rng.permutation(list(letters)).tolist(), strict=True))
        made = _of_sheet(_sheet(rng, "letter"), "letter")
        said = "".join(says.get(character, character) for character in made.layer_text)
        shown = dataclasses.replace(made.page, says=says)
        return dataclasses.replace(made, page=shown, layer="wrong", layer_text=said, fault=fault)
    page = _readable(rng, scan=SCAN_STRENGTH, kind=pick(rng, ("letter", "invoice", "receipt")))
    lines = page.text.split("\n")
    if fault == "other page":
        lines = _readable(rng, scan=0.0, kind=page.kind).text.split("\n")
    elif fault == "half":
        lines = lines[: len(lines) // 2]
    else:
        lines = [_garbled(rng, line) for line in lines]
    return _with_layer(_pictured(page, quality=85), page, lines, fault)


def _garbled(rng: np.random.Generator, line: str) -> str:
    """As a program reads that sees too little: two of five letters are others."""
    others = string.ascii_letters + string.digits + "|!.,;'^~"
    wrong = rng.random(len(line)) < 0.4
    return "".join(
        pick(rng, others) if is_wrong and character != " " else character
        for character, is_wrong in zip(line, wrong, strict=True)
    )


def _blank(rng: np.random.Generator) -> _Made:
    """Nothing at all, or an even picture of white or tinted paper."""
    if rng.random() < 0.4:
        return _Made(page=PdfPage(size_pt=A4_PT), kind="blank", text="")
    paper = tuple(int(level) for level in 255 - rng.integers(0, 24, size=3))
    image = Image.new("RGB", A4_PX, paper)
    return _Made(page=PdfPage(size_pt=A4_PT, image=image), kind="blank", text="")


def _blank_scan(rng: np.random.Generator) -> _Made:
    """The empty back of a printed sheet on a scanner: its front shows through."""
    front = make_page(rng, split="eval", max_lines=LONG_LINES, kind="letter", fonts="common")
    paper = tuple(int(level) for level in 250 - rng.integers(0, 16, size=3))
    image = Image.new("RGB", A4_PX, paper)
    image = scans.show_through(rng, image, front.image, strength=float(rng.uniform(0.1, 0.35)))
    image = scans.soil(rng, image, strength=SCAN_STRENGTH)
    page = PdfPage(size_pt=A4_PT, image=image, jpeg_quality=80)
    return _Made(page=page, kind="blank", text="")


MAKERS: dict[Sort, Callable[[np.random.Generator], _Made]] = {
    "clean": _clean, "scan": _scan, "digital": _digital, "searchable": _searchable,
    "table": _table, "turned": _turned, "rotated": _rotated, "faded": _faded, "long": _long,
    "columns": _columns, "wrong layer": _wrong_layer, "blank": _blank, "blank scan": _blank_scan,
}  # fmt: skip


if __name__ == "__main__":
    main()
