"""The document job: folders of files to text, thousands of pages, nothing lost and nothing silent.

    for document in ivl.read_documents("scans/", model=model, out="texts/"):
        print(document.path, document.statuses)

With `out` a run has a journal, and can be ended at any moment: the same call goes on where it was.
Every page that was read is in the journal before it counts. Files are made of the journal, each
when all of its pages are there, so that a run holds in memory what it is reading, and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack, cast

from ivl.checkpoint.hub import locate_pair
from ivl.checkpoint.identity import fingerprint
from ivl.documents.inputs import Document, Given, find_documents
from ivl.documents.journal import RunJournal, journal_key
from ivl.documents.looking import ReadSettings, TextLayerUse
from ivl.documents.outputs import (
    OutputTarget,
    find_target,
    plan_outputs,
    render,
    write_whole,
)
from ivl.documents.progress import ReadProgress, Tally
from ivl.documents.prompts import question_of
from ivl.documents.reading import (
    Wanted,
    check_jobs,
    check_model,
    open_document,
    passwords_of,
    read_pages,
)
from ivl.documents.results import (
    STATUSES,
    WITHOUT_TEXT,
    DocumentResult,
    PageResult,
    PageStatus,
)
from ivl.engine.options import GenerationKeywords, GenerationOptions, Schema, schema_text
from ivl.engine.prompt_builder import Images, as_list
from ivl.errors import IvlError, RequestError
from ivl.json_values import JsonObject, JsonValue
from ivl.pages.reader import Page
from ivl.pages.sources import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from ivl.documents.page_reading import Watcher
    from ivl.documents.page_talks import Reader

VERSION: Final = 1
"""Of the way in which pages are read: texts of another one are not mixed in."""


def model_facts(
    model: str | os.PathLike[str] = "demo",
    *,
    mmproj: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
    show_progress: bool = False,
    **arithmetic: JsonValue,
) -> JsonObject:
    """What of a model decides about its answers: its files, and `arithmetic`, the options of its
    loading that change results. Downloads what is not here; errors as of `ivl.load`."""
    found = locate_pair(
        model, mmproj, revision=revision, offline=offline, show_progress=show_progress
    )
    return {"files": fingerprint(found.path, found.mmproj), **arithmetic}


def read_documents(
    paths: Images | Sequence[Given],
    *,
    model: Reader | Callable[[], Reader],
    model_facts: JsonObject | Callable[[], JsonObject] | None = None,
    out: str | os.PathLike[str] | None = None,
    format: str | None = None,
    force: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    pages: str | None = None,
    passwords: Sequence[str] = (),
    jobs: int | None = None,
    prompt: str = "text",
    keep_headers: bool = False,
    max_tiles: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    system: str | None = None,
    schema: Schema = None,
    retry: bool = True,
    skip_blank: bool = True,
    rotate: bool = True,
    text_layer: TextLayerUse = "auto",
    found: Callable[[ReadProgress], None] | None = None,
    progress: Callable[[ReadProgress], None] | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[GenerationKeywords],
) -> Iterator[DocumentResult]:
    """Reads documents, and yields each when all of its pages are done.

    paths, model, pages, passwords, jobs, prompt, keep_headers, retry, skip_blank, rotate,
    text_layer, watcher and the rest: as of `read`.
    out: a folder, in which the tree of the inputs is mirrored, or the file that all goes into;
    format: `md`, `txt`, `json`, `jsonl` or `html`; by default what the name of the file says, or
    `md`. Beside the texts a folder has `report.json`, and a hidden journal: the same call again
    reads what is missing and tries failed pages again. Other settings, another model or a changed
    file are read anew, and files that were written with other settings are removed first. A file
    that no run has written is not overwritten, unless `force`. retry_failed: pages that failed are
    tried again, and nothing else is read.
    dry_run: nothing is read or written; `found` is told what there would be to do.
    model_facts: which model it is, where `model` is not one that `ivl.load` returned; see the
    function of that name. found: is told once how much there is to do; progress: after every page.
    RequestError, before anything is read, for outputs that would have the same name.
    """
    check_jobs(jobs)
    check_model(model)
    if out is not None and not isinstance(out, str | os.PathLike):
        raise RequestError(f"`out` is a {type(out).__name__}.", "Give a folder or a file.")
    settings = ReadSettings(
        question=question_of(prompt, keep_headers=keep_headers),
        max_tiles=max_tiles,
        max_pixels=max_pixels,
        system=system,
        schema=schema,
        generation=GenerationOptions.of(options),
        retry=retry,
        skip_blank=skip_blank,
        rotate=rotate,
        text_layer=text_layer,
    )
    given = find_documents(cast("Sequence[Given]", as_list(cast("Images", paths))))
    documents = given.documents
    wanted = Wanted(pages=pages, passwords=passwords_of(passwords))
    tell = Tally(found, progress)
    if out is None and not dry_run:
        yield from _without_files(documents, model, settings, wanted, jobs, tell, watcher)
        return
    if out is not None:  # a file that was given twice is written once
        documents = tuple({(one.path, one.place): one for one in documents}.values())
    target = None if out is None else _target(out, format)
    outputs = [] if target is None else plan_outputs(documents, target)
    if target is None or (dry_run and not target.journal.exists()):
        num_pages = sum(len(open_document(one, settings, wanted)) for one in documents)
        tell.begin(len(documents), num_pages, Counter())
        return
    facts = _facts_of(model) if model_facts is None else model_facts
    facts = facts() if callable(facts) else facts
    with RunJournal(target.journal, read_only=dry_run) as journal:
        run = _Run(documents, outputs, target, journal, _settings_record(settings, facts))
        run.find(settings, wanted, force=force, retry_failed=retry_failed)
        if dry_run:
            run.count(tell)
            return
        run.begin(given.skipped)
        yield from run.go(model, settings, jobs, tell, watcher)


def _target(out: str | os.PathLike[str], form: str | None) -> OutputTarget:
    """As of `find_target`, which takes an empty name for the present folder."""
    if not os.fspath(out):
        raise RequestError("`out` is empty.", "Is the variable that it comes from set?")
    return find_target(Path(out), form)


def _facts_of(model: Reader | Callable[[], Reader]) -> JsonObject:
    facts = None if callable(model) else model.facts
    if facts is None:
        raise RequestError(
            "Which model it is cannot be told, and the journal has to say it.",
            "Give `model_facts`: what ivl.documents.job.model_facts returns.",
        )
    return facts


def _settings_record(settings: ReadSettings, model: JsonObject) -> JsonObject:
    schema = None if settings.schema is None else schema_text(settings.schema)
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
            "schema": schema,
            "retry": settings.retry,
            "skip_blank": settings.skip_blank,
            "rotate": settings.rotate,
            "text_layer": settings.text_layer,
            **{key: value for key, value in generation.items() if value not in (None, ())},
        },
    )


def _without_files(
    documents: Sequence[Document],
    model: Reader | Callable[[], Reader],
    settings: ReadSettings,
    wanted: Wanted,
    jobs: int | None,
    tell: Tally,
    watcher: Watcher | None,
) -> Iterator[DocumentResult]:
    opened = [open_document(document, settings, wanted) for document in documents]
    pages = [page for ones in opened for page in ones]
    homes = [home for home, ones in enumerate(opened) for _ in ones]
    first = [homes.index(home) if ones else 0 for home, ones in enumerate(opened)]
    results: list[dict[int, PageResult]] = [{} for _ in opened]
    tell.begin(len(documents), len(pages), Counter())
    for number, result in read_pages(pages, model, settings, jobs=jobs, watcher=watcher):
        home = homes[number]
        results[home][number - first[home]] = result
        tell.count(result.status)
        if len(results[home]) == len(opened[home]):
            done = tuple(results[home][index] for index in range(len(opened[home])))
            results[home] = {}
            yield DocumentResult(path=documents[home].path, pages=done)


@dataclass(slots=True)
class _Sheet:
    """A document in a run. `pages`: a key for each that the journal can have, and for the others,
    of files that could not be opened, what came of them."""

    document: Document
    output: Path
    content_hash: str
    pages: list[str | PageResult]
    left: set[str] = field(default_factory=set)
    """Keys of pages that are still to be read."""

    @property
    def has_pages(self) -> bool:
        return any(isinstance(page, str) for page in self.pages)


class _Run:
    """Everything between the first look at the files and the report."""

    def __init__(
        self,
        documents: Sequence[Document],
        outputs: Sequence[Path],
        target: OutputTarget,
        journal: RunJournal,
        settings: JsonObject,
    ) -> None:
        self._documents, self._outputs, self._target = documents, outputs, target
        self._journal, self._settings = journal, settings
        self._of = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self._sheets: list[_Sheet] = []
        self._todo: dict[str, Page] = {}
        self._waiting: dict[str, list[_Sheet]] = {}

    def find(
        self, settings: ReadSettings, wanted: Wanted, *, force: bool, retry_failed: bool
    ) -> None:
        """Opens and hashes all documents, and finds what is to be read."""
        if not force:
            self._refuse_foreign_files()
        for document, output in zip(self._documents, self._outputs, strict=True):
            sheet = self._open(document, output, settings, wanted)
            self._sheets.append(sheet)
            for key in dict.fromkeys(page for page in sheet.pages if isinstance(page, str)):
                status = self._status(key)
                if status in WITHOUT_TEXT or (status is None and not retry_failed):
                    sheet.left.add(key)
                    self._waiting.setdefault(key, []).append(sheet)
                else:
                    self._todo.pop(key, None)
                    if status is None:  # is neither done nor going to be
                        sheet.left.add(key)
        self._todo = {key: page for key, page in self._todo.items() if key in self._waiting}

    def begin(self, skipped: Counter[str]) -> None:
        """Says in the journal what is going to be done, and makes room for it."""
        for sheet in self._sheets:
            self._remove_stale(sheet)
        self._remove_orphans()
        self._journal.begin(
            {
                "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "settings": self._settings,
                "format": self._target.format,
                "skipped": dict(skipped),
                "documents": [self._entry(sheet) for sheet in self._sheets],
            }
        )

    def _open(
        self, document: Document, output: Path, settings: ReadSettings, wanted: Wanted
    ) -> _Sheet:
        opened = open_document(document, settings, wanted)
        content_hash = ""
        if any(isinstance(page, Page) for page in opened):
            try:
                content_hash = document.content_hash() or _hash_of_picture(opened)
            except IvlError as error:
                opened = [PageResult(path=document.path, status="failed", error=error)]
        pages: list[str | PageResult] = []
        for page in opened:
            if isinstance(page, PageResult):
                pages.append(page)
                continue
            key = journal_key(content_hash, page.number, self._settings)
            self._todo.setdefault(key, page)
            pages.append(key)
        return _Sheet(document, output, content_hash, pages)

    def _entry(self, sheet: _Sheet) -> JsonObject:
        keys: list[JsonValue] = [
            page if isinstance(page, str) else page.to_dict() for page in sheet.pages
        ]
        return {"path": sheet.document.path, "output": self._name(sheet.output), "pages": keys}

    def _name(self, output: Path) -> str:
        return os.path.relpath(output, self._target.folder)

    def _status(self, key: str) -> PageStatus | None:
        record = self._journal.find(key)
        return None if record is None else cast(PageStatus, record["status"])

    def _refuse_foreign_files(self) -> None:
        for output in dict.fromkeys([*self._outputs, self._target.report]):
            if output.exists() and self._name(output) not in self._journal.files:
                raise RequestError(
                    f"{output} exists, and no run of ivl has written it.",
                    "`force` replaces it; or write to another place.",
                )

    def _remove_stale(self, sheet: _Sheet) -> None:
        """A file of other settings does not stand among those of these."""
        of = self._journal.files.get(self._name(sheet.output), self._of)
        if not of.startswith(self._of) and sheet.left:
            sheet.output.unlink(missing_ok=True)

    def _remove_orphans(self) -> None:
        """Files of other settings whose documents are not among these any more."""
        if self._target.file is not None:
            return
        kept = {self._name(path) for path in (*self._outputs, self._target.report)}
        for name, of in self._journal.files.items():
            if name not in kept and not of.startswith(self._of):
                (self._target.folder / name).unlink(missing_ok=True)

    def count(self, tell: Tally) -> None:
        """Tells how much there is to do."""
        num_pages = sum(len(sheet.pages) for sheet in self._sheets)
        tell.begin(len(self._sheets), num_pages, self._counts())

    def go(
        self,
        model: Reader | Callable[[], Reader],
        settings: ReadSettings,
        jobs: int | None,
        tell: Tally,
        watcher: Watcher | None,
    ) -> Iterator[DocumentResult]:
        """Reads what is to be read, writes files, and at the end the report."""
        self.count(tell)
        began = time.monotonic()
        for sheet in self._sheets:
            if not sheet.left:
                yield self._finish(sheet)
        keys = list(self._todo)
        results = read_pages(
            [self._todo[key] for key in keys], model, settings, jobs=jobs, watcher=watcher
        )
        for number, result in results:
            key = keys[number]
            self._journal.append(key, result.to_dict())
            for sheet in self._waiting.pop(key):
                sheet.left.discard(key)
                tell.count(result.status)
                if not sheet.left:
                    yield self._finish(sheet)
        if self._target.file is not None and not any(sheet.left for sheet in self._sheets):
            results = (self._result(sheet) for sheet in self._sheets)
            self._write(self._target.file, render(results, self._target.format))
        report = self._report(time.monotonic() - began)
        self._write(self._target.report, [json.dumps(report, indent=2), "\n"])

    def _counts(self) -> Counter[PageStatus]:
        """Of pages that are done already, those included that cannot be read at all."""
        return Counter(
            page.status if isinstance(page, PageResult) else cast(PageStatus, self._status(page))
            for sheet in self._sheets
            for page in sheet.pages
            if isinstance(page, PageResult) or page not in sheet.left
        )

    def _finish(self, sheet: _Sheet) -> DocumentResult:
        """All pages are there: the document's file is written, unless it stands there already."""
        result = self._result(sheet)
        if self._target.file is not None:
            return result
        if not sheet.has_pages:
            return replace(result, output=None)
        text = "".join(render([result], self._target.format))
        of = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
        written = self._journal.files.get(self._name(sheet.output))
        if written != f"{self._of}:{of}" or not sheet.output.exists():
            self._write(sheet.output, [text], of)
        return result

    def _write(self, path: Path, parts: Iterable[str], of: str = "") -> None:
        # In this order: a run that is killed in between finds a file that it may replace.
        self._journal.wrote(self._name(path), f"{self._of}:{of}")
        write_whole(path, parts)

    def _result(self, sheet: _Sheet) -> DocumentResult:
        pages = []
        for page in sheet.pages:
            if isinstance(page, str):
                record = self._journal.find(page)
                assert record is not None
                # Another file of the same content may have been read.
                page = replace(PageResult.from_dict(record), path=sheet.document.path)
            pages.append(page)
        return DocumentResult(path=sheet.document.path, pages=tuple(pages), output=sheet.output)

    def _report(self, seconds: float) -> JsonObject:
        return {
            **summarize(self._journal, self._journal.runs[-1]).to_dict(),
            "seconds": round(seconds, 3),
            "settings": self._settings,
        }


def _hash_of_picture(opened: Sequence[Page | PageResult]) -> str:
    """Of a picture that is no file: of its pixels."""
    state = hashlib.sha256()
    for page in opened:
        if isinstance(page, Page):
            image = page.load()
            state.update(f"{image.size}".encode() + image.tobytes())
    return state.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run has come to so far: its documents, and pages by status; pages that are not done
    have none."""

    began: str
    skipped: Counter[str]
    """Files in folders that were left out, by the endings of their names."""
    num_documents: int
    num_done_documents: int
    num_pages: int
    statuses: Counter[PageStatus]
    documents: tuple[JsonObject, ...]
    """path, output, pages, and statuses of each."""
    problems: tuple[PageResult, ...]
    """Pages that did not come out whole."""

    @property
    def num_left(self) -> int:
        return self.num_pages - self.statuses.total()

    @property
    def has_failed(self) -> bool:
        return any(self.statuses[status] for status in WITHOUT_TEXT)

    def to_dict(self) -> JsonObject:
        """For JSON; docs/documents.md says what the keys mean."""
        return {
            "began": self.began,
            "pages": self.num_pages,
            "left": self.num_left,
            "statuses": {s: self.statuses[s] for s in STATUSES if self.statuses[s]},
            "skipped": dict(self.skipped),
            "documents": list(self.documents),
            "problems": [
                {k: v for k, v in page.to_dict().items() if k in _PROBLEM} for page in self.problems
            ],
        }


_PROBLEM: Final = ("path", "page", "label", "status", "error", "hint", "attempts", "notes")
_IN_ORDER: Final = ("ok", "blank", "text-layer")


def run_status(out: str | os.PathLike[str]) -> RunSummary:
    """What the last run that wrote to `out` has come to; it may be going on. RequestError where
    there was none."""
    path = Path(out)
    one_file = OutputTarget(format="jsonl", folder=path.parent, file=path)
    # Also of a run of `ivl.extract`, whose table may be CSV.
    target = one_file if one_file.journal.exists() else OutputTarget(format="md", folder=path)
    if not target.journal.exists():
        raise RequestError(f"No run has written to {path}.", "Name what a run wrote to with -o.")
    with RunJournal(target.journal, read_only=True) as journal:
        if not journal.runs:
            raise RequestError(f"No run has begun in {path}.", "Start one with -o.")
        return summarize(journal, journal.runs[-1])


def summarize(journal: RunJournal, run: JsonObject) -> RunSummary:
    """What a run has come to."""
    documents, problems, totals = [], [], Counter[PageStatus]()
    num_pages = num_done = 0
    for entry in cast("list[JsonObject]", run["documents"]):
        statuses = Counter[PageStatus]()
        pages = cast("list[str | JsonObject]", entry["pages"])
        for page in pages:
            record = journal.find(page) if isinstance(page, str) else page
            if record is None:
                continue
            status = cast(PageStatus, record["status"])
            statuses[status] += 1
            if status not in _IN_ORDER:
                shown = PageResult.from_dict({**record, "text": ""})
                problems.append(replace(shown, path=str(entry["path"])))
        totals += statuses
        num_pages += len(pages)
        num_done += statuses.total() == len(pages)
        documents.append(
            {
                "path": entry["path"],
                "output": entry["output"],
                "pages": len(pages),
                "statuses": dict(statuses),
            }
        )
    return RunSummary(
        began=str(run["began"]),
        skipped=Counter(cast("dict[str, int]", run.get("skipped", {}))),
        num_documents=len(documents),
        num_done_documents=num_done,
        num_pages=num_pages,
        statuses=totals,
        documents=tuple(cast("list[JsonObject]", documents)),
        problems=tuple(problems),
    )
