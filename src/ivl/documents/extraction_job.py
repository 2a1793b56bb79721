"""`ivl.extract`: from files to the values of a schema, one result after the other.

    for row in ivl.extract("receipts/", schema="receipt", model=model, out="receipts.csv"):
        print(row.path, row.values["total"], row.fields["total"].confidence)

With `out` there is a journal beside it: a run that was ended goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack, cast

from ivl.documents.extraction import (
    MOST_ATTEMPTS,
    ExtractResult,
    ExtractSettings,
    PageFields,
    Per,
    document_result,
    extract_pages,
    page_result,
    settings_record,
)
from ivl.documents.extraction_tables import find_list, json_lines, table_lines
from ivl.documents.field_values import DEFAULT_MIN_CONFIDENCE
from ivl.documents.inputs import Document, Found, Given, find_documents
from ivl.documents.job import RunSummary, summarize
from ivl.documents.journal import RunJournal, journal_key
from ivl.documents.looking import ReadSettings
from ivl.documents.outputs import OutputTarget, write_whole
from ivl.documents.progress import ReadProgress, Tally
from ivl.documents.reading import Wanted, check_jobs, open_document
from ivl.documents.results import PageResult, PageStatus
from ivl.documents.schemas import SchemaSource, load_schema
from ivl.engine.options import GenerationKeywords, GenerationOptions
from ivl.engine.prompt_builder import Images, as_list
from ivl.errors import IvlError, RequestError
from ivl.json_values import JsonObject, JsonValue
from ivl.pages.reader import Page
from ivl.pages.sources import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:  # documents are opened before torch is imported: a wrong name is told at once
    from ivl.documents.page_talks import Reader

ENDINGS: Final = (".jsonl", ".ndjson", ".csv")
"""Of the names of files that results are written to."""


def extract(
    paths: Images | Sequence[Given],
    *,
    schema: SchemaSource,
    model: Reader | Callable[[], Reader],
    pages: str | None = None,
    passwords: Sequence[str] = (),
    per: Per = "document",
    check: bool = True,
    min_confidence: float = DEFAULT_MIN_CONFIDENCE,
    retries: int = MOST_ATTEMPTS - 1,
    out: str | os.PathLike[str] | None = None,
    rows: str | None = None,
    force: bool = False,
    model_facts: JsonObject | Callable[[], JsonObject] | None = None,
    jobs: int | None = None,
    max_tiles: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    system: str | None = None,
    found: Callable[[ReadProgress], None] | None = None,
    progress: Callable[[ReadProgress], None] | None = None,
    **options: Unpack[GenerationKeywords],
) -> Iterator[ExtractResult]:
    """Fills a schema from documents, and yields a result for each document, or `per` page, in
    order; also for one that failed.

    paths, model, pages, passwords, jobs: as of `read`. schema: `receipt`, `invoice` or `letter`, a
    file with a JSON schema, a mapping, or a class of pydantic's, whose instances the results then
    have as `data`. check: each value is looked for in the text of its page (its PDF's text layer,
    or what the model reads), which takes as long as reading it; one that is not there has a
    confidence of at most 0.5. min_confidence: below it a field is doubtful; then it is asked for by
    itself, `retries` times (0 to 2), and the surest answer kept.
    out: a .jsonl or .csv file, which is written whole when all is done; rows: the list whose
    elements have rows of their own in the .csv file. Beside it are a report and a hidden journal:
    the same call again asks about what is missing, and about pages that failed. A file that no run
    has written is not overwritten, unless `force`. model_facts, found, progress: as of
    `read_documents`. The rest as of `Model.ask`.
    """
    check_jobs(jobs)
    settings = ExtractSettings(
        schema=load_schema(schema),
        per=per,
        check=check,
        min_confidence=min_confidence,
        retries=retries,
        reading=ReadSettings(
            max_tiles=max_tiles,
            max_pixels=max_pixels,
            system=system,
            generation=GenerationOptions.of(options),
        ),
    )
    wanted = Wanted(pages=pages, passwords=tuple(passwords))
    target = None if out is None else _target(Path(out))
    if rows is not None:
        find_list(settings.schema, rows)
        if target is None or target.file is None or target.file.suffix.lower() != ".csv":
            raise RequestError(
                "`rows` is for a table.", "Name a .csv file with `out`; other results have all."
            )
    given = find_documents(cast("Sequence[Given]", as_list(cast("Images", paths))))
    if target is not None:
        _refuse_to_overwrite(given.documents, target)
    with ExitStack() as stack:
        journal: RunJournal | None = None
        record: JsonObject = {}
        if target is not None:
            facts = _facts_of(model) if model_facts is None else model_facts
            record = settings_record(settings, facts() if callable(facts) else facts)
            journal = stack.enter_context(RunJournal(target.journal))
            _refuse_foreign(target, journal, force=force)
            _remove_stale(target, journal, _of(record, per, rows))
        run = _Run(given, wanted, settings, journal, record, Tally(found, progress))
        began = time.monotonic()
        yield from run.go(model, jobs)
        if target is not None:
            run.write(target, rows, _of(record, per, rows), time.monotonic() - began)


def extract_status(out: str | os.PathLike[str]) -> RunSummary:
    """What the last run that wrote to this file has come to. RequestError where there was none."""
    with RunJournal(_target(Path(out)).journal, read_only=True) as journal:
        if not journal.runs:
            raise RequestError(f"No run has begun to write {out}.", "Start one with `out`.")
        return summarize(journal, journal.runs[-1])


def _target(out: Path) -> OutputTarget:
    """RequestError for a name that is not that of a table."""
    if out.suffix.lower() not in ENDINGS or out.is_dir():
        raise RequestError(
            f"{out} is not the name of a table.",
            "Results go into one file: name it *.csv for a spreadsheet, *.jsonl for programs.",
        )
    return OutputTarget(format="jsonl", folder=out.parent, file=out)


def _facts_of(model: Reader | Callable[[], Reader]) -> JsonObject:
    facts = None if callable(model) else model.facts
    if facts is None:
        raise RequestError(
            "Which model it is cannot be told, and the journal has to say it.",
            "Give `model_facts`: what ivl.documents.job.model_facts returns.",
        )
    return facts


def _refuse_to_overwrite(documents: Sequence[Document], target: OutputTarget) -> None:
    assert target.file is not None
    own = {os.path.realpath(d.path) for d in documents if isinstance(d.source, str | os.PathLike)}
    for path in (target.file, target.report):
        if os.path.realpath(path) in own:
            raise RequestError(
                f"{path} is one of the documents, and would be overwritten.",
                "Write to another place.",
            )


def _refuse_foreign(target: OutputTarget, journal: RunJournal, *, force: bool) -> None:
    assert target.file is not None
    for path in (target.file, target.report):
        if path.exists() and path.name not in journal.files and not force:
            raise RequestError(
                f"{path} exists, and no run of ivl has written it.",
                "`force` replaces it; or write to another place.",
            )


def _of(record: JsonObject, per: Per, rows: str | None) -> str:
    """What a table is made of, beside its documents."""
    text = json.dumps([record, per, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _remove_stale(target: OutputTarget, journal: RunJournal, of: str) -> None:
    """A table of other settings does not stand there while a run goes on, nor when it is ended."""
    assert target.file is not None
    if journal.files.get(target.file.name, of) != of:
        target.file.unlink(missing_ok=True)


@dataclass(slots=True)
class _Sheet:
    """A document in a run: its pages, under a key where they can be asked about, and what came of
    them, by their index, as long as that is needed."""

    document: Document
    pages: list[tuple[str, Page | PageResult]]
    done: dict[int, PageFields] = field(default_factory=dict)


class _Run:
    """From the first look at the files to the table."""

    def __init__(
        self,
        given: Found,
        wanted: Wanted,
        settings: ExtractSettings,
        journal: RunJournal | None,
        record: JsonObject,
        tally: Tally,
    ) -> None:
        self._settings, self._journal, self._record = settings, journal, record
        self._tally, self._skipped = tally, given.skipped
        self._sheets = [self._open(document, wanted) for document in given.documents]

    def _open(self, document: Document, wanted: Wanted) -> _Sheet:
        opened = open_document(document, self._settings.reading, wanted)
        content_hash = ""
        if self._journal is not None and any(isinstance(page, Page) for page in opened):
            try:
                # A picture that is no file is asked about anew.
                content_hash = document.content_hash() or secrets.token_hex()
            except IvlError as error:
                opened = [PageResult(path=document.path, status="failed", error=error)]
        pages: list[tuple[str, Page | PageResult]] = []
        for page in opened:
            is_page = isinstance(page, Page)
            key = journal_key(content_hash, page.number, self._record) if is_page else ""
            pages.append((key, page))
        return _Sheet(document, pages)

    def go(self, model: Reader | Callable[[], Reader], jobs: int | None) -> Iterator[ExtractResult]:
        """Results in the order of the documents, each when all of its pages are done."""
        todo: list[tuple[_Sheet, int]] = []
        before = Counter[PageStatus]()
        for sheet in self._sheets:
            for index in range(len(sheet.pages)):
                found = self._known(sheet, index)
                if found is None or (found.page.has_failed and sheet.pages[index][0]):
                    todo.append((sheet, index))
                else:
                    sheet.done[index] = found
                    before[found.page.status] += 1
        if self._journal is not None:
            self._journal.begin(self._head())
        self._tally.begin(len(self._sheets), len(todo) + before.total(), before)
        pages = [sheet.pages[index][1] for sheet, index in todo]
        asked = extract_pages(pages, model, self._settings, jobs=jobs)
        for sheet in self._sheets:
            while len(sheet.done) < len(sheet.pages):
                number, result = next(asked)
                home, index = todo[number]
                home.done[index] = result
                if self._journal is not None:
                    self._journal.append(home.pages[index][0], result.to_dict())
                self._tally.count(result.page.status)
            done, sheet.done = sheet.done, {}
            yield from self._results(sheet, [done[index] for index in range(len(sheet.pages))])

    def _known(self, sheet: _Sheet, index: int) -> PageFields | None:
        """What came of a page, as far as it is known without asking."""
        key, page = sheet.pages[index]
        if isinstance(page, PageResult):
            return PageFields(page=page)
        found = None if self._journal is None else self._journal.find(key)
        if found is None:
            return None
        known = PageFields.from_dict(found)
        # Another file of the same content may have been asked about.
        return replace(known, page=replace(known.page, path=sheet.document.path))

    def _results(self, sheet: _Sheet, pages: Sequence[PageFields]) -> Iterator[ExtractResult]:
        schema = self._settings.schema
        if self._settings.per == "page":
            yield from (page_result(schema, page) for page in pages)
        elif pages:
            yield document_result(schema, sheet.document.path, pages)

    def _head(self) -> JsonObject:
        """What the journal says where a run begins; the same as of pages that are read."""
        documents: list[JsonValue] = [
            {
                "path": sheet.document.path,
                "output": "",
                "pages": [
                    page.to_dict() if isinstance(page, PageResult) else key
                    for key, page in sheet.pages
                ],
            }
            for sheet in self._sheets
        ]
        return {
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "settings": self._record,
            "format": "jsonl",
            "documents": documents,
            "skipped": dict(self._skipped),
        }

    def write(self, target: OutputTarget, rows: str | None, of: str, elapsed_s: float) -> None:
        """The table and the report, from the journal: a run does not keep all results."""
        assert self._journal is not None
        assert target.file is not None
        counts: dict[str, Counter[str]] = {}
        schema = self._settings.schema

        def results() -> Iterator[ExtractResult]:
            for sheet in self._sheets:
                known = [self._known(sheet, index) for index in range(len(sheet.pages))]
                for result in self._results(sheet, [one for one in known if one is not None]):
                    for one in schema.fields:
                        if one.name in result.fields:
                            status = result.fields[one.name].status
                            counts.setdefault(one.name, Counter())[status] += 1
                    yield result

        is_table = target.file.suffix.lower() == ".csv"
        lines = table_lines(schema, results(), rows=rows) if is_table else json_lines(results())
        # In this order: a run that is killed in between finds a file that it may replace.
        for path in (target.file, target.report):
            self._journal.wrote(path.name, of)
        write_whole(target.file, lines)
        report: JsonObject = {
            **summarize(self._journal, self._journal.runs[-1]).to_dict(),
            "fields": {name: dict(statuses) for name, statuses in counts.items()},
            "seconds": round(elapsed_s, 3),
            "settings": self._record,
        }
        write_whole(target.report, [json.dumps(report, indent=2), "\n"])
