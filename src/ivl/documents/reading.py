"""All the text of files, page after page.

    for page in ivl.read(["scan.pdf", "receipts/"], model=model):
        print(page.path, page.number, page.status, page.text)

A page that cannot be read says so and leaves the others alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack, cast

from ivl.documents.inputs import Document, Found, Given, find_documents
from ivl.documents.looking import ReadKeywords, ReadSettings
from ivl.documents.progress import ReadProgress, Tally
from ivl.documents.results import PageResult
from ivl.engine.prompt_builder import LIMIT_OPTION, Images, as_list
from ivl.errors import ConfigError, IvlError, LockedError, RequestError
from ivl.pages import selection
from ivl.pages.reader import Page, open_pages

if TYPE_CHECKING:  # pages are opened before torch is imported: a wrong name is told at once
    from ivl.documents.page_reading import Watcher
    from ivl.documents.page_talks import Reader


def read(
    paths: Images | Sequence[Given],
    *,
    model: Reader | Callable[[], Reader],
    pages: str | None = None,
    passwords: Sequence[str] = (),
    jobs: int | None = None,
    logprobs: int | None = None,
    found: Callable[[ReadProgress], None] | None = None,
    progress: Callable[[ReadProgress], None] | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[ReadKeywords],
) -> Iterator[PageResult]:
    """Reads all the text of files, and yields one result for every page, in order; also for one
    that failed, and for a file that cannot be opened.

    paths: files, folders, patterns and lists as of `find_documents`, or what else `Model.ask` takes
    for images; a pair has the name that a source shall have in results. All are opened before the
    first is read. model: a model, or what loads one, which is called when there is a page to read.
    pages: which of every file, such as "1-4,7,-1" (see `ivl.pages.selection`). passwords: what is
    tried on PDFs that need one. jobs: pages that are read at once; by default as many as the memory
    holds, at most 16. logprobs: as of `Model.ask`. found: is told once how much there is to do;
    progress: after every page. watcher: sees the text as it comes. options: see `ReadKeywords`.
    """
    check_jobs(jobs)
    check_model(model)
    settings = ReadSettings.of(options, logprobs)
    wanted = Wanted(pages=pages, passwords=passwords_of(passwords))
    given = find_given(paths)
    opened = [page for one in given.documents for page in open_document(one, settings, wanted)]
    tally = Tally(found, progress)
    tally.begin(len(given.documents), len(opened), Counter())
    results = read_pages(opened, model, settings, jobs=jobs, watcher=watcher)
    yield from in_order(tally.counted(results))


def find_given(paths: Images | Sequence[Given]) -> Found:
    """What `find_documents` finds; one source may stand for a list of them."""
    return find_documents(cast("Sequence[Given]", as_list(cast("Images", paths))))


def check_jobs(jobs: int | None) -> None:
    """ConfigError for what is no number of pages."""
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ConfigError(f"`jobs` is {jobs!r}.", "Give a number of pages, 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of documents is read: `pages` of each, all where it is None, and the passwords that are
    tried. RequestError, when made, for what names no pages."""

    pages: str | None = None
    passwords: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pages is not None and not isinstance(self.pages, str):
            kind = type(self.pages).__name__
            raise RequestError(f"`pages` is a {kind}.", 'Give a text, such as "1-4,7,-1".')
        if self.pages is not None:
            selection.check(self.pages)


def check_model(model: object) -> None:
    """RequestError for the name of a model, which has to be loaded first."""
    if isinstance(model, str | os.PathLike):
        raise RequestError(
            f"The model is a name, {os.fspath(model)!r}.", "Load it: model=ivl.load(...)."
        )


def passwords_of(given: Sequence[str]) -> tuple[str, ...]:
    """RequestError for a password that is not in a list, and would be tried letter by letter."""
    if isinstance(given, str):
        raise RequestError("`passwords` is a text.", "Give a list of passwords.")
    return tuple(given)


def open_document(
    document: Document, settings: ReadSettings, wanted: Wanted
) -> Sequence[Page | PageResult]:
    """The wanted pages of a file, or one result that says why it has none."""
    if document.error is not None:
        return [PageResult(path=document.path, status="failed", error=document.error)]
    try:
        pages = open_pages(
            document.source,
            document.path,
            max_pixels=settings.max_pixels,
            limit_option=LIMIT_OPTION,
            passwords=wanted.passwords,
        )
        if wanted.pages is None:
            return pages
        return [pages[number - 1] for number in selection.choose(wanted.pages, len(pages))]
    except LockedError as error:
        return [PageResult(path=document.path, status="locked", error=error)]
    except IvlError as error:
        return [PageResult(path=document.path, status="failed", error=error)]


def read_pages(
    pages: Sequence[Page | PageResult],
    model: Reader | Callable[[], Reader],
    settings: ReadSettings,
    *,
    jobs: int | None = None,
    watcher: Watcher | None = None,
) -> Iterator[tuple[int, PageResult]]:
    """What comes of each page, with its number among `pages`, from 0, as soon as it is known."""
    todo = [number for number, page in enumerate(pages) if isinstance(page, Page)]
    yield from ((n, page) for n, page in enumerate(pages) if isinstance(page, PageResult))
    if not todo:
        return
    from ivl.documents.page_reading import read_batch  # torch comes with it

    batch = read_batch(
        [page for page in pages if isinstance(page, Page)],
        model if callable(model) else lambda: model,
        settings,
        jobs=jobs,
        watcher=watcher,
    )
    yield from ((todo[index], result) for index, result in batch)


def in_order(results: Iterator[tuple[int, PageResult]]) -> Iterator[PageResult]:
    """Results by their numbers, which begin with 0: none before those that it follows."""
    waiting: dict[int, PageResult] = {}
    number = 0
    for index, result in results:
        waiting[index] = result
        while number in waiting:
            yield waiting.pop(number)
            number += 1
