"""`ivl.extract`: from files to the values of a schema, one result after the other.

    for row in ivl.extract("receipts/", schema="receipt", model=model, out="receipts.csv"):
        print(row.path, row.values["total"], row.fields["total"].confidence)

With `out` there is a journal beside it: a run that was ended goes on where it was.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

from ivl.documents.extraction import (
    MOST_ATTEMPTS,
    ExtractResult,
    ExtractSettings,
    PageFields,
    Per,
    document_result,
    extract_pages,
    extraction_record,
    page_result,
)
from ivl.documents.extraction_tables import find_list, json_lines, table_lines
from ivl.documents.field_values import DEFAULT_MIN_CONFIDENCE
from ivl.documents.inputs import Given
from ivl.documents.job import run_status
from ivl.documents.looking import ReadSettings
from ivl.documents.outputs import OutputTarget
from ivl.documents.page_run import PageRun, RunFiles, Sheet, facts_of, opened_run, out_path
from ivl.documents.progress import ReadProgress, Tally
from ivl.documents.reading import Wanted, check_jobs, check_model, find_given, passwords_of
from ivl.documents.results import PageResult
from ivl.documents.run_summary import RunSummary
from ivl.documents.schemas import ExtractionSchema, SchemaSource, load_schema
from ivl.engine.options import GenerationKeywords, GenerationOptions
from ivl.engine.prompt_builder import Images
from ivl.errors import RequestError
from ivl.json_values import JsonObject
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
    retry_failed: bool = False,
    dry_run: bool = False,
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
    has written is not overwritten, unless `force`. retry_failed: pages that failed are asked about
    again, and nothing else; the table is written when no page is missing. dry_run: nothing is asked
    or written; `found` is told what there would be to do. model_facts, found, progress: as of
    `read_documents`. The rest as of `Model.ask`.
    """
    check_jobs(jobs)
    check_model(model)
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
    target = None if out is None else _target(out_path(out))
    if rows is not None:
        _check_rows(rows, settings.schema, target)
    with opened_run(
        find_given(paths),
        settings.reading,
        Wanted(pages=pages, passwords=passwords_of(passwords)),
        target,
        Tally(found, progress),
        settings=lambda: extraction_record(settings, facts_of(model, model_facts)),
        also=[per, rows],
        from_dict=PageFields.from_dict,
        force=force,
        retry_failed=retry_failed,
        dry_run=dry_run,
    ) as run:
        if dry_run:
            return
        read = partial(extract_pages, model=model, settings=settings, jobs=jobs)
        for sheet in run.go_in_order(read):
            yield from _results(run, sheet, settings)
        if run.files is not None:
            _write_end(run, run.files, settings, rows)


def _check_rows(rows: str, schema: ExtractionSchema, target: OutputTarget | None) -> None:
    """RequestError for what is no list of the schema, and where there is no table of rows."""
    find_list(schema, rows)
    if target is None or target.file is None or target.file.suffix.lower() != ".csv":
        raise RequestError(
            "`rows` is for a table.", "Name a .csv file with `out`; other results have all."
        )


def _results(
    run: PageRun[PageFields], sheet: Sheet, settings: ExtractSettings
) -> Iterator[ExtractResult]:
    """Of a document that is done, or of each of its pages."""
    pages = [
        PageFields(page=one) if isinstance(one, PageResult) else one for one in run.take(sheet)
    ]
    if settings.per == "page":
        yield from (page_result(settings.schema, page) for page in pages)
    elif pages:
        yield document_result(settings.schema, sheet.document.path, pages)


def _write_end(
    run: PageRun[PageFields], files: RunFiles, settings: ExtractSettings, rows: str | None
) -> None:
    """The table, where all pages are there, and the report: from the journal, for a run does not
    keep all results."""
    table = files.target.file
    assert table is not None
    is_csv = table.suffix.lower() == ".csv"

    def results() -> Iterator[ExtractResult]:
        return (result for sheet in run.sheets for result in _results(run, sheet, settings))

    def lines() -> Iterator[str]:
        return (
            table_lines(settings.schema, results(), rows=rows) if is_csv else json_lines(results())
        )

    statuses: dict[str, Counter[str]] = {}
    if not any(sheet.left for sheet in run.sheets):
        files.write(table, lines)
        for result in results():
            for name, field in result.fields.items():
                statuses.setdefault(name, Counter())[field.status] += 1
    files.write_report({"fields": {name: dict(count) for name, count in statuses.items()}})


def extract_status(out: str | os.PathLike[str]) -> RunSummary:
    """What the last run that wrote to this file has come to. RequestError where there was none."""
    _target(out_path(out))
    return run_status(out)


def _target(out: Path) -> OutputTarget:
    """RequestError for a name that is not that of a table."""
    if out.suffix.lower() not in ENDINGS or out.is_dir():
        raise RequestError(
            f"{out} is not the name of a table.",
            "Results go into one file: name it *.csv for a spreadsheet, *.jsonl for programs.",
        )
    return OutputTarget(format="jsonl", folder=out.parent, file=out)
