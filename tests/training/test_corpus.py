"""The corpus of documents: its truth is what its PDFs show and say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from ivl.pages.reader import open_pages
from tests.training.installed_fonts import skip_without_fonts

skip_without_fonts("common")

from training.corpus import (  # noqa: E402
    MOST_PAGES,
    PAGES_OF_SORT,
    TruthPage,
    load_truth,
    write_corpus,
)

NUM_PAGES, NUM_DOCUMENTS = 90, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, num_pages=NUM_PAGES, num_documents=NUM_DOCUMENTS, seed=1)
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> list[TruthPage]:
    return load_truth(folder)


def seen(folder: Path, page: TruthPage) -> Image.Image:
    return open_pages(folder / page.path)[page.page - 1].load()


def layer_words(folder: Path, page: TruthPage) -> list[str]:
    with pypdfium2.PdfDocument(folder / page.path) as document:
        text = document[page.page - 1].get_textpage()
        try:
            return text.get_text_range().split()
        finally:
            text.close()


def test_every_page_of_every_document_has_its_truth(folder: Path, truth: list[TruthPage]) -> None:
    assert len(truth) == NUM_PAGES
    counts = Counter(page.path for page in truth)
    assert len(counts) == NUM_DOCUMENTS
    assert set(counts) == {str(path.relative_to(folder)) for path in folder.rglob("*.pdf")}
    assert (min(counts.values()), max(counts.values())) == (1, MOST_PAGES)
    for path, count in counts.items():
        assert len(open_pages(folder / path)) == count
    wanted = [(path, n, count) for path, count in counts.items() for n in range(1, count + 1)]
    assert [(page.path, page.page, page.pages) for page in truth] == wanted


def test_every_sort_of_page_is_there_in_its_proportion(truth: list[TruthPage]) -> None:
    counted = Counter(page.sort for page in truth)
    for sort, of_300 in PAGES_OF_SORT.items():
        assert abs(counted[sort] - of_300 * NUM_PAGES / 300) <= 1, sort
    assert {page.turned for page in truth if page.sort == "turned"} == {90, 180, 270}
    assert all(page.rotate for page in truth if page.sort == "rotated")
    assert sum(PAGES_OF_SORT.values()) == 300


def test_layers_say_what_the_truth_says_that_they_say(folder: Path, truth: list[TruthPage]) -> None:
    assert {page.layer for page in truth} == {"none", "right", "wrong"}
    for page in truth:
        # A reader of PDFs may put a line's pieces in another order: of a turned or hidden one.
        found = Counter(layer_words(folder, page))
        assert found == Counter(page.layer_text.split()), (page.path, page.page)


def test_right_layers_have_the_words_of_the_page_and_wrong_ones_have_not(
    truth: list[TruthPage],
) -> None:
    for page in truth:
        words = Counter(word for word in page.text.split() if word.strip("|-"))
        if page.layer == "right":
            assert Counter(page.layer_text.split()) == words
        elif page.layer == "wrong":
            assert page.fault
            shared = (Counter(page.layer_text.split()) & words).total()
            assert shared < 0.8 * words.total()


def test_blank_pages_are_blank_or_have_the_print_of_their_back(
    folder: Path, truth: list[TruthPage]
) -> None:
    blank = [page for page in truth if not page.text]
    assert {page.sort for page in blank} == {"blank", "blank scan"}
    for page in blank:
        levels = np.asarray(seen(folder, page).convert("L")).astype(int)
        if page.sort == "blank":
            assert np.ptp(levels) <= 2
        else:
            assert np.ptp(levels) > 10


def test_pages_that_are_not_blank_show_ink(folder: Path, truth: list[TruthPage]) -> None:
    for page in truth:
        if page.text:
            levels = np.asarray(seen(folder, page).convert("L")).astype(int)
            assert np.ptp(levels) > 30, (page.sort, page.path, page.page)


def test_faded_pages_are_paler_than_clean_ones(folder: Path, truth: list[TruthPage]) -> None:
    def contrast(sort: str) -> float:
        spans = []
        for page in truth:
            if page.sort == sort:
                levels = np.asarray(seen(folder, page).convert("L"))
                spans.append(float(np.ptp(np.percentile(levels, (0.5, 99.5)))))
        return float(np.median(spans))

    assert contrast("faded") < 0.5 * contrast("clean")


def test_long_pages_have_some_twenty_lines(truth: list[TruthPage]) -> None:
    lengths = [page.text.count("\n") + 1 for page in truth if page.sort == "long"]
    assert np.median(lengths) >= 18
    assert max(lengths) >= 22


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_corpus(tmp_path / name, num_pages=12, num_documents=3, seed=seed)
    first, second, other = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in files(tmp_path / name)}
        for name in "abc"
    )
    assert first == second
    assert first != other


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("pages", "documents"), [(2, 3), (61, 2)])
def test_documents_have_from_one_to_thirty_pages(
    tmp_path: Path, pages: int, documents: int
) -> None:
    with pytest.raises(ValueError, match="1 to 30 pages"):
        write_corpus(tmp_path, num_pages=pages, num_documents=documents)
