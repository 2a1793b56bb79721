"""The document job: folders of files to text, thousands of pages, nothing lost and nothing silent.

    for document in ivl.read_documents("scans/", model=model, out="texts/"):
        print(document.path, document.statuses)

With `out` a run has a journal, and can be ended at any moment: the same call goes on where it was.
Every page that was read is in the journal before it counts. Files are made of the journal, each
when all of its pages are there, so that a run holds in memory what it is reading, and no more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ivl.checkpoint.hub import locate_pair
from ivl.checkpoint.identity import fingerprint
from ivl.documents.inputs import Given
from ivl.documents.journal import RunJournal
from ivl.documents.looking import ReadKeywords, ReadSettings
from ivl.documents.outputs import OutputTarget, find_target, render
from ivl.documents.page_run import (
    PageRun,
    RunFiles,
    Sheet,
    facts_of,
    opened_run,
    out_path,
    settings_record,
)
from ivl.documents.progress import ReadProgress, Tally
from ivl.documents.reading import (
    Wanted,
    check_jobs,
    check_model,
    find_given,
    passwords_of,
    read_pages,
)
from ivl.documents.results import DocumentResult, PageResult
from ivl.documents.run_summary import RunSummary, summarize
from ivl.engine.prompt_builder import Images
from ivl.errors import RequestError
from ivl.json_values import JsonObject, JsonValue

if TYPE_CHECKING:
    from ivl.documents.page_reading import Watcher
    from ivl.documents.page_talks import Reader


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
    found: Callable[[ReadProgress], None] | None = None,
    progress: Callable[[ReadProgress], None] | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[ReadKeywords],
) -> Iterator[DocumentResult]:
    """Reads documents, and yields each when all of its pages are done.

    paths, model, pages, passwords, jobs, watcher and options: as of `read`.
    out: a folder, in which the tree of the inputs is mirrored, or the file that all goes into;
    format: `md`, `txt`, `json`, `jsonl` or `html`; by default what the name of the file says, or
    `md`. Beside the texts a folder has `report.json`, and a hidden journal: the same call again
    reads what is missing and tries failed pages again. Other settings, another model or a changed
    file are read anew, and files that were written with other settings are removed first. A file
    that no run has written, or that was changed since, is not overwritten, unless `force`.
    retry_failed: pages that failed are
    tried again, and nothing else is read.
    dry_run: nothing is read or written; `found` is told what there would be to do.
    model_facts: which model it is, where `model` is not one that `ivl.load` returned; see the
    function of that name. found: is told once how much there is to do; progress: after every page.
    RequestError, before anything is read, for outputs that would have the same name.
    """
    check_jobs(jobs)
    check_model(model)
    settings = ReadSettings.of(options)
    target = None if out is None else find_target(out_path(out), format)
    with opened_run(
        find_given(paths),
        settings,
        Wanted(pages=pages, passwords=passwords_of(passwords)),
        target,
        Tally(found, progress),
        settings=lambda: settings_record(settings, facts_of(model, model_facts)),
        from_dict=PageResult.from_dict,
        force=force,
        retry_failed=retry_failed,
        dry_run=dry_run,
    ) as run:
        if dry_run:
            return
        read = partial(read_pages, model=model, settings=settings, jobs=jobs, watcher=watcher)
        for sheet in run.go(read):
            yield _finished(run, sheet)
        if run.files is not None:
            _write_end(run, run.files)


def _finished(run: PageRun[PageResult], sheet: Sheet) -> DocumentResult:
    """All pages are there: the document's file is written, unless it stands there already, or all
    goes into one."""
    result = DocumentResult(
        path=sheet.document.path, pages=tuple(run.take(sheet)), output=sheet.output
    )
    if run.files is None or run.files.target.file is not None:
        return result
    if sheet.output is None or not sheet.has_pages:
        return replace(result, output=None)
    text = "".join(render([result], run.files.target.format))
    run.files.write(sheet.output, lambda: [text])
    return result


def _write_end(run: PageRun[PageResult], files: RunFiles) -> None:
    """The one file that all goes into, where there is one and all pages are there; the report."""
    form = files.target.format
    if files.target.file is not None and not any(sheet.left for sheet in run.sheets):
        files.write(
            files.target.file,
            lambda: render((_finished(run, sheet) for sheet in run.sheets), form),
        )
    files.write_report()


def run_status(out: str | os.PathLike[str]) -> RunSummary:
    """What the last run that wrote to `out` has come to; it may be going on. RequestError where
    there was none."""
    path = Path(out)
    one_file = OutputTarget(format="jsonl", folder=path.parent, file=path)
    # Also of a run of `ivl.extract`, whose table may be CSV.
    target = one_file if one_file.journal.exists() else OutputTarget(format="md", folder=path)
    if not target.journal.exists():
        raise RequestError(f"No run has written to {path}.", "Name what a run wrote to with `out`.")
    with RunJournal(target.journal, read_only=True) as journal:
        if not journal.runs:
            raise RequestError(f"No run has begun in {path}.", "Start one with `out`.")
        return summarize(journal, journal.runs[-1])
