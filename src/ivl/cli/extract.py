"""`ivl extract`: the fields of a schema from documents, as JSON lines or a table."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from ivl.cli.inputs import facts_of_choice, given_documents, load_model, read_passwords
from ivl.cli.options import (
    Drafting,
    MaxPixels,
    MaxTiles,
    ModelChoice,
    PageChoice,
    Quiet,
    RunChoice,
    Sampling,
    with_options,
)
from ivl.cli.progress import (
    EXIT_SOME_FAILED,
    PageProgress,
    estimator,
    print_plan,
    print_summary,
    told_when_ended,
)
from ivl.cli.terminal import Status
from ivl.cli.words import print_error, spoken
from ivl.documents.extraction import ExtractResult
from ivl.documents.extraction_job import extract, extract_status
from ivl.documents.field_values import DEFAULT_MIN_CONFIDENCE
from ivl.documents.schemas import READY_SCHEMAS, load_schema
from ivl.engine.options import DEFAULT_MAX_PIXELS
from ivl.json_values import json_text
from ivl.planner.run import TOKENS_OF_PAGE
from ivl.spelling import counted

TOKENS_OF_FIELDS = 200
"""Those that the values of a page are taken to have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracting:
    """What is extracted, and how carefully."""

    schema: Annotated[
        str,
        Option(
            "--schema",
            metavar="SCHEMA",
            help=f"A file with a JSON schema, or a ready one: {', '.join(READY_SCHEMAS)}.",
        ),
    ]
    per: Annotated[
        Literal["document", "page"],
        Option(metavar="WHAT", help="A result for each document, or for each page."),
    ] = "document"
    no_check: Annotated[
        bool,
        Option(
            "--no-check",
            help="Do not look for values in the text of their page, which is read for that.",
        ),
    ] = False
    min_confidence: Annotated[
        float,
        Option(metavar="P", help="Fields below are doubtful, and are asked for by themselves."),
    ] = DEFAULT_MIN_CONFIDENCE
    retries: Annotated[
        int, Option(metavar="N", help="How often a doubtful field is asked for again, 0 to 2.")
    ] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Where the results go."""

    out: Annotated[
        str | None,
        Option(
            "--out",
            "-o",
            metavar="FILE",
            help="A .csv file for a spreadsheet, or .jsonl; by default JSON lines are printed. "
            "With a journal: the same command goes on where it was ended.",
        ),
    ] = None
    rows: Annotated[
        str | None,
        Option(metavar="LIST", help="A row of the .csv file for each element of this list."),
    ] = None


@with_options
def command(
    files: Annotated[list[str], Argument(metavar="FILE...", hidden=True)],
    *,
    extracting: Extracting,
    table: Table,
    run: RunChoice,
    which: PageChoice,
    max_tiles: MaxTiles = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    quiet: Quiet = False,
    choice: ModelChoice,
    drafting: Drafting,
    sampling: Sampling,
) -> None:
    """Extract the fields of a schema from images and PDFs.

    FILE is a file, a folder, a pattern in quotation marks ('scans/**/*.pdf'), a list of files
    (@list.txt), or -, which is stdin. Every value comes with how sure it is, and with what stands
    on the page. A page that cannot be read does not stop the others, and the exit code is 2.
    """
    sampling.options()  # what cannot be used is told before anything is opened
    load_schema(extracting.schema)
    run.check(table.out)
    status = Status(quiet=quiet, json=table.out is None)
    tokens = TOKENS_OF_FIELDS + (0 if extracting.no_check else TOKENS_OF_PAGE)
    estimate = estimator(choice, which, run, max_tiles=max_tiles, tokens=tokens)
    progress = PageProgress(status, estimate)
    results = extract(
        given_documents(files),
        schema=extracting.schema,
        model=functools.cache(lambda: load_model(choice, status, drafting)),
        pages=which.pages,
        passwords=read_passwords(which.passwords),
        per=extracting.per,
        check=not extracting.no_check,
        min_confidence=extracting.min_confidence,
        retries=extracting.retries,
        out=table.out,
        rows=table.rows,
        force=run.force,
        retry_failed=run.retry_failed,
        dry_run=run.dry_run,
        model_facts=lambda: facts_of_choice(choice, status),
        jobs=which.jobs,
        max_tiles=max_tiles,
        max_pixels=max_pixels,
        found=functools.partial(print_plan, estimate, False) if run.dry_run else progress.begin,
        progress=progress.show,
        **sampling.given(),
    )
    if table.out is None:
        has_failed = _print_all(results, status)
    else:
        with told_when_ended(status):
            has_failed = _write(results, None if run.dry_run else table.out, status)
    if has_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _print_all(results: Iterator[ExtractResult], status: Status) -> bool:
    """Tells whether one has failed."""
    has_failed = False
    for result in results:
        has_failed = has_failed or result.has_failed
        status.clear()
        _print(result)
        if result.error is not None:
            print_error(result.error.message, result.error.hint)
    return has_failed


def _write(results: Iterator[ExtractResult], out: str | None, status: Status) -> bool:
    """Lets a run write its table, and tells whether a page has failed; None: it writes nothing."""
    num_doubtful = sum(bool(result.doubtful) for result in results)
    status.clear()
    if out is None:
        return False
    summary = extract_status(out)
    if not status.quiet:
        print_summary(summary, file=sys.stderr)
        if num_doubtful:
            has = "has" if num_doubtful == 1 else "have"
            status.note(f"{counted(num_doubtful, 'result')} {has} doubtful fields.")
    return summary.has_failed


def _print(result: ExtractResult) -> None:
    record = result.to_dict()
    for key in ("error", "hint"):
        if isinstance(told := record.get(key), str):
            record[key] = spoken(told)
    print(json_text(record), flush=True)
