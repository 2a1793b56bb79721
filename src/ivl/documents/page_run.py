"""A run over the pages of documents: what is done, what is to be done, and what is written down.

Every page that was read is in the journal before it counts. What reads pages, what is kept of one,
and what is written of a document, the jobs say: `documents/job.py` and `extraction_job.py`.
Without files there is no journal, and what came of pages is held until their document is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar, cast

from ivl.documents.inputs import Document, Found
from ivl.documents.journal import RunJournal, journal_key
from ivl.documents.looking import ReadSettings
from ivl.documents.outputs import (
    OutputTarget,
    hash_of_file,
    hash_of_text,
    plan_outputs,
    write_whole,
)
from ivl.documents.progress import Tally
from ivl.documents.reading import Wanted, open_document
from ivl.documents.results import WITHOUT_TEXT, PageResult, PageStatus
from ivl.documents.run_summary import summarize
from ivl.engine.options import schema_text
from ivl.errors import IvlError, RequestError
from ivl.json_values import JsonObject, JsonValue
from ivl.pages.reader import Page

if TYPE_CHECKING:
    from ivl.documents.page_talks import Reader

VERSION: Final = 1
"""Of the way in which pages are read: texts of another one are not mixed in."""


class PageRecord(Protocol):
    """What is kept of a page."""

    @property
    def status(self) -> PageStatus: ...

    def to_dict(self) -> JsonObject:
        """With path and status, as of a `PageResult`."""
        ...


Record = TypeVar("Record", bound=PageRecord)


def out_path(out: str | os.PathLike[str]) -> Path:
    """RequestError for what names no place; an empty name would be the present folder."""
    if not isinstance(out, str | os.PathLike):
        raise RequestError(f"`out` is a {type(out).__name__}.", "Give a folder or a file.")
    if not os.fspath(out):
        raise RequestError("`out` is empty.", "Is the variable that it comes from set?")
    return Path(out)


def facts_of(
    model: Reader | Callable[[], Reader],
    given: JsonObject | Callable[[], JsonObject] | None,
) -> JsonObject:
    """Which model it is: what was given, or what the model knows of itself."""
    if given is not None:
        return given() if callable(given) else given
    facts = None if callable(model) else model.facts
    if facts is None:
        raise RequestError(
            "Which model it is cannot be told, and the journal has to say it.",
            "Give `model_facts`: what ivl.documents.job.model_facts returns.",
        )
    return facts


def settings_record(settings: ReadSettings, model: JsonObject) -> JsonObject:
    """All that the text of a page depends on, for a journal."""
    generation = asdict(settings.generation)
    return cast(
        JsonObject,
        {
            "version": VERSION,
            "model": model,
            "question": settings.question,
            "max_tiles": settings.max_tiles,
            "max_pixels": settings.max_pixels,
            "system": settings.system,
            "schema": None if settings.schema is None else schema_text(settings.schema),
            "retry": settings.retry,
            "skip_blank": settings.skip_blank,
            "rotate": settings.rotate,
            "text_layer": settings.text_layer,
            **{key: value for key, value in generation.items() if value not in (None, ())},
        },
    )


@dataclass(slots=True)
class Sheet:
    """A document in a run. `pages`: a key for each that can be read, and for the others, of files
    that could not be opened, what came of them."""

    document: Document
    output: Path | None
    pages: list[str | PageResult]
    left: set[str] = field(default_factory=set)
    """Keys of pages that are still to be read."""
    is_left_out: bool = False
    """Some of them are not going to be read by this run."""

    @property
    def has_pages(self) -> bool:
        return any(isinstance(page, str) for page in self.pages)


class RunFiles:
    """What a run writes: its journal, the files that are made of it, and the report."""

    def __init__(
        self,
        target: OutputTarget,
        journal: RunJournal,
        settings: JsonObject,
        also: JsonValue,
        *,
        force: bool,
    ) -> None:
        """settings: all that pages depend on; also: what files depend on beside it. force: files
        are replaced that are not as a run has written them."""
        self.target, self.journal, self.settings = target, journal, settings
        self.left_alone: list[str] = []
        """Files of other settings that somebody has changed; they stay."""
        of = json.dumps([settings, also], sort_keys=True)
        self._of = hashlib.sha256(of.encode()).hexdigest()[:16]
        self._force = force
        self._began = time.monotonic()

    def name(self, path: Path) -> str:
        """As the journal has it."""
        return os.path.relpath(path, self.target.folder)

    def refuse_foreign(self, outputs: Iterable[Path]) -> None:
        """RequestError for a file that would be overwritten, and that no run has written."""
        for path in dict.fromkeys([*outputs, self.target.report]):
            if path.exists() and self.name(path) not in self.journal.files and not self._force:
                raise RequestError(
                    f"{path} exists, and no run of ivl has written it.",
                    "`force` replaces it; or write to another place.",
                )

    def check_last_run(self) -> None:
        """RequestError where the last run, whose failed pages are to be tried again, was none, or
        had other settings: its files would go, and nothing would be read."""
        if not self.journal.runs:
            raise RequestError(
                f"No run has written to {self.target.file or self.target.folder}.",
                "Leave `retry_failed` out.",
            )
        last = self.journal.runs[-1]["settings"]
        if json.dumps(last, sort_keys=True) != json.dumps(self.settings, sort_keys=True):
            raise RequestError(
                "The last run had another model or other settings: of these no page has failed.",
                "Give it the same options, or leave `retry_failed` out.",
            )

    def refuse_changed(self, sheets: Sequence[Sheet]) -> None:
        """RequestError for a file that this run is going to write anew, and that somebody has
        changed since it was written."""
        one_file = self.target.file
        if one_file is not None:
            sheets = [] if any(sheet.is_left_out for sheet in sheets) else sheets
            outputs = [one_file] if any(self._is_to_be_written(sheet) for sheet in sheets) else []
        else:
            outputs = [
                sheet.output
                for sheet in sheets
                if sheet.output and not sheet.is_left_out and self._is_to_be_written(sheet)
            ]
        for path in outputs:
            self._refuse_changed(path)

    def _is_to_be_written(self, sheet: Sheet) -> bool:
        is_of_others = sheet.output and self.journal.files.get(self.name(sheet.output)) != self._of
        return bool(sheet.left or is_of_others)

    def _refuse_changed(self, path: Path) -> None:
        if not self._force and self._is_changed(path):
            raise RequestError(
                f"{path} was changed since a run of ivl has written it.",
                "Move it away, or write to another place; `force` replaces it.",
            )

    def _is_changed(self, path: Path) -> bool:
        return path.exists() and not self.journal.has_written(self.name(path), hash_of_file(path))

    def begin(self, skipped: Counter[str], documents: list[JsonValue]) -> None:
        """A run over these documents begins. Files of other settings do not stand among those of
        these, nor while it goes on, but for those that somebody has changed."""
        for name, of in self.journal.files.items():
            path = self.target.folder / name
            if of == self._of or path == self.target.report or not path.exists():
                continue
            if self._is_changed(path) and not self._force:
                self.left_alone.append(name)
            else:
                path.unlink()
        self._began = time.monotonic()
        self.journal.begin(
            {
                "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "settings": self.settings,
                "format": self.target.format,
                "skipped": dict(skipped),
                "left_alone": cast(JsonValue, self.left_alone),
                "documents": documents,
            }
        )

    def write(self, path: Path, parts: Callable[[], Iterable[str]]) -> None:
        """Writes what `parts` gives, each time it is called, unless that was written there last:
        what somebody has changed then stays. RequestError where his changes would be lost."""
        name, content = self.name(path), hash_of_text(parts())
        is_there = path.exists() and self.journal.files.get(name) == self._of
        if is_there and self.journal.last_content(name) == content:
            if not (self._force and self._is_changed(path)):
                return
        if path != self.target.report:
            self._refuse_changed(path)
        # In this order: a run that is killed in between finds a file that it may replace.
        self.journal.wrote(name, self._of, content)
        write_whole(path, parts())

    def write_report(self, more: JsonObject | None = None) -> None:
        """What the run has come to; more: what only this kind of run has to say."""
        report: JsonObject = {
            **summarize(self.journal, self.journal.runs[-1]).to_dict(),
            **(more or {}),
            "seconds": round(time.monotonic() - self._began, 3),
            "settings": self.settings,
        }
        text = json.dumps(report, indent=2) + "\n"
        self.write(self.target.report, lambda: [text])


class PageRun(Generic[Record]):
    """Everything between the first look at the files and what is made of their pages."""

    def __init__(
        self, from_dict: Callable[[JsonObject], Record], files: RunFiles | None, tell: Tally
    ) -> None:
        """from_dict: makes a record of what its `to_dict` gave. files: None without any."""
        self.files, self._tell = files, tell
        self.sheets: list[Sheet] = []
        self._from_dict = from_dict
        self._held: dict[str, Record] = {}
        self._todo: dict[str, Page] = {}
        self._waiting: dict[str, list[Sheet]] = {}

    def find(
        self,
        documents: Sequence[Document],
        outputs: Sequence[Path | None],
        reading: ReadSettings,
        wanted: Wanted,
        *,
        retry_failed: bool,
    ) -> None:
        """Opens and hashes all documents, and finds what is to be read. outputs: the file that each
        is going to be in. retry_failed: only what has failed before is read, and files that could
        not be opened then."""
        closed = self._not_opened_before()
        for document, output in zip(documents, outputs, strict=True):
            sheet = self._open(document, output, reading, wanted)
            self.sheets.append(sheet)
            for key in dict.fromkeys(page for page in sheet.pages if isinstance(page, str)):
                status = self._status(key)
                if status is None and retry_failed and document.path not in closed:
                    sheet.left.add(key)
                    sheet.is_left_out = True
                elif status is None or status in WITHOUT_TEXT:
                    sheet.left.add(key)
                    self._waiting.setdefault(key, []).append(sheet)
        self._todo = {key: page for key, page in self._todo.items() if key in self._waiting}

    def _not_opened_before(self) -> set[str]:
        """Files that the last run could not open: it has no keys of their pages."""
        if self.files is None or not self.files.journal.runs:
            return set()
        entries = cast("list[JsonObject]", self.files.journal.runs[-1]["documents"])
        return {
            str(entry["path"])
            for entry in entries
            if any(not isinstance(page, str) for page in cast("list[JsonValue]", entry["pages"]))
        }

    def _open(
        self, document: Document, output: Path | None, reading: ReadSettings, wanted: Wanted
    ) -> Sheet:
        opened = open_document(document, reading, wanted)
        content_hash = f"document {len(self.sheets)}"
        settings = {} if self.files is None else self.files.settings
        if self.files is not None and any(isinstance(page, Page) for page in opened):
            try:
                content_hash = document.content_hash() or _hash_of_picture(opened)
            except IvlError as error:
                opened = [PageResult(path=document.path, status="failed", error=error)]
        pages: list[str | PageResult] = []
        for page in opened:
            if isinstance(page, PageResult):
                pages.append(page)
                continue
            key = journal_key(content_hash, page.number, settings)
            self._todo.setdefault(key, page)
            pages.append(key)
        return Sheet(document, output, pages)

    def count(self) -> None:
        """Tells how much there is, and what of it is done; also what cannot be read at all."""
        before = Counter[PageStatus](
            page.status if isinstance(page, PageResult) else cast(PageStatus, self._status(page))
            for sheet in self.sheets
            for page in sheet.pages
            if isinstance(page, PageResult) or page not in sheet.left
        )
        self._tell.begin(len(self.sheets), sum(len(sheet.pages) for sheet in self.sheets), before)

    def begin(self, skipped: Counter[str]) -> None:
        """Says in the journal, if there is one, what is going to be done."""
        if self.files is not None:
            self.files.begin(skipped, [self._entry(sheet, self.files) for sheet in self.sheets])

    def go(self, read: Callable[[Sequence[Page]], Iterator[tuple[int, Record]]]) -> Iterator[Sheet]:
        """Reads what is to be read, and yields each document when all of its pages are there.
        read: gives what comes of pages, with their numbers from 0, as soon as it is known."""
        yield from (sheet for sheet in self.sheets if not sheet.left)
        keys = list(self._todo)
        for number, record in read([self._todo[key] for key in keys]):
            key = keys[number]
            if self.files is None:
                self._held[key] = record
            else:
                self.files.journal.append(key, record.to_dict())
            for sheet in self._waiting.pop(key):
                sheet.left.discard(key)
                self._tell.count(record.status)
                if not sheet.left:
                    yield sheet

    def go_in_order(
        self, read: Callable[[Sequence[Page]], Iterator[tuple[int, Record]]]
    ) -> Iterator[Sheet]:
        """As `go`, but no document before those that were given before it."""
        coming = (sheet for sheet in self.sheets if not sheet.is_left_out)
        following = next(coming, None)
        for _ in self.go(read):
            while following is not None and not following.left:
                yield following
                following = next(coming, None)

    def take(self, sheet: Sheet) -> list[Record | PageResult]:
        """What came of the pages of a document that is done; without files it is told once."""
        return [
            page if isinstance(page, PageResult) else self._take(page, sheet)
            for page in sheet.pages
        ]

    def _take(self, key: str, sheet: Sheet) -> Record:
        if self.files is None:
            return self._held.pop(key)
        found = self.files.journal.find(key)
        assert found is not None
        # Another file of the same content may have been read.
        return self._from_dict({**found, "path": sheet.document.path})

    def _status(self, key: str) -> PageStatus | None:
        found = None if self.files is None else self.files.journal.find(key)
        return None if found is None else cast(PageStatus, found["status"])

    def _entry(self, sheet: Sheet, files: RunFiles) -> JsonValue:
        keys: list[JsonValue] = [
            page if isinstance(page, str) else page.to_dict() for page in sheet.pages
        ]
        output = None if sheet.output is None else files.name(sheet.output)
        return {"path": sheet.document.path, "output": output, "pages": keys}


@contextmanager
def opened_run(
    given: Found,
    reading: ReadSettings,
    wanted: Wanted,
    target: OutputTarget | None,
    tell: Tally,
    *,
    settings: Callable[[], JsonObject],
    from_dict: Callable[[JsonObject], Record],
    also: JsonValue = None,
    force: bool,
    retry_failed: bool,
    dry_run: bool,
) -> Iterator[PageRun[Record]]:
    """A run over these documents, which has begun, unless it is a `dry_run`; `tell` was told how
    much there is to do.

    target: None where no files are written. settings, also: as of `RunFiles`; the settings are
    asked for when there is a journal. from_dict: as of `PageRun`. force, retry_failed, dry_run: as
    of `read_documents`. RequestError for outputs that would have the same name, or that would
    replace what no run has written, or what somebody has changed since; and for `retry_failed`
    where no run with these settings has been.
    """
    documents = given.documents
    if target is not None:  # a file that was given twice is written once
        documents = tuple({_identity(one): one for one in documents}.values())
    outputs = [] if target is None else plan_outputs(documents, target)
    with ExitStack() as stack:
        files = None
        if target is not None and (not dry_run or target.journal.exists()):
            record = settings()
            journal = stack.enter_context(RunJournal(target.journal, read_only=dry_run))
            files = RunFiles(target, journal, record, also, force=force)
            files.refuse_foreign(outputs)
        if files is not None and retry_failed:
            files.check_last_run()
        run = PageRun(from_dict, files, tell)
        run.find(
            documents,
            outputs or [None] * len(documents),
            reading,
            wanted,
            retry_failed=retry_failed,
        )
        if files is not None:
            files.refuse_changed(run.sheets)
        run.count()
        if not dry_run:
            run.begin(given.skipped)
        yield run


def _identity(document: Document) -> tuple[object, ...]:
    """Pictures that are no files may have one name, and are not the same for that."""
    is_file = isinstance(document.source, str | os.PathLike)
    return document.path, document.place, None if is_file else id(document.source)


def _hash_of_picture(opened: Sequence[Page | PageResult]) -> str:
    """Of a picture that is no file: of its pixels."""
    state = hashlib.sha256()
    for page in opened:
        if isinstance(page, Page):
            image = page.load()
            state.update(f"{image.size}".encode() + image.tobytes())
    return state.hexdigest()
