"""`ivl read`: all the text of documents, printed or written into files."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer import Argument, Option

from ivl.cli.inputs import facts_of_choice, given_documents, load_model, read_passwords
from ivl.cli.options import (
    AnswerForm,
    Drafting,
    Json,
    MaxPixels,
    MaxTiles,
    ModelChoice,
    PageChoice,
    Quiet,
    RunChoice,
    Sampling,
    Times,
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
from ivl.cli.terminal import Status, note_ending, print_json
from ivl.cli.words import clean, print_error, spoken
from ivl.documents.job import read_documents, run_status
from ivl.documents.looking import ReadKeywords, TextLayerUse
from ivl.documents.outputs import FORMATS, file_mark, find_target, page_mark, render
from ivl.documents.progress import ReadProgress
from ivl.documents.prompts import PRESETS
from ivl.documents.reading import read
from ivl.documents.results import DocumentResult, PageResult
from ivl.engine.options import DEFAULT_MAX_PIXELS
from ivl.errors import ConfigError
from ivl.json_values import JsonObject, json_text
from ivl.planner.run import TOKENS_OF_PAGE

if TYPE_CHECKING:
    from ivl.api import Model
    from ivl.documents.views import PageView


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How pages are read."""

    prompt: Annotated[
        str,
        Option(
            metavar="PROMPT",
            help=f"What the model is asked for: {', '.join(PRESETS)} (Markdown with tables as "
            "HTML), or a question of your own.",
        ),
    ] = "text"
    keep_headers: Annotated[
        bool,
        Option("--keep-headers", help="Keep running headers, footers and page numbers."),
    ] = False
    no_retry: Annotated[
        bool,
        Option(
            "--no-retry",
            help="Do not read a page again in other ways on which the model goes round in circles.",
        ),
    ] = False
    text_layer: Annotated[
        str,
        Option(
            metavar="USE",
            help="The text that a PDF carries: auto takes it where it is good, only reads nothing, "
            "ignore reads all pages, check reads them and says where it differs.",
        ),
    ] = "auto"
    no_skip_blank: Annotated[
        bool, Option("--no-skip-blank", help="Show blank pages to the model too.")
    ] = False
    no_rotate: Annotated[
        bool,
        Option(
            "--no-rotate",
            help="Leave pages as they are that lie on their side or stand on their head.",
        ),
    ] = False

    def keywords(self) -> ReadKeywords:
        """As `ivl.read` takes them."""
        return {
            "prompt": self.prompt,
            "keep_headers": self.keep_headers,
            "retry": not self.no_retry,
            "skip_blank": not self.no_skip_blank,
            "rotate": not self.no_rotate,
            "text_layer": cast("TextLayerUse", self.text_layer),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Where the text goes."""

    out: Annotated[
        str | None,
        Option(
            "--out",
            "-o",
            metavar="OUT",
            help="A folder, which mirrors the tree of the inputs, or a file. With a journal: the "
            "same command goes on where it was ended.",
        ),
    ] = None
    form: Annotated[
        str | None,
        Option(
            "--format",
            metavar="FORMAT",
            help=f"{', '.join(FORMATS)}; by default what the name of the file says, or md.",
        ),
    ] = None
    status: Annotated[
        bool, Option("--status", help="Say what a run that wrote to the given place has done.")
    ] = False


@with_options
def command(
    files: Annotated[list[str], Argument(metavar="FILE...", hidden=True)],
    *,
    reading: Reading,
    writing: Writing,
    run: RunChoice,
    which: PageChoice,
    max_tiles: MaxTiles = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json: Json = False,
    times: Times = False,
    quiet: Quiet = False,
    choice: ModelChoice,
    form: AnswerForm,
    drafting: Drafting,
    sampling: Sampling,
) -> None:
    """Read all the text in images and PDFs.

    FILE is a file, a folder, a pattern in quotation marks ('scans/**/*.pdf'), a list of files
    (@list.txt), or -, which is stdin. Every page has a status; one that cannot be read does not
    stop the others, and the exit code is 2. With --out a run can be ended at any moment, and the
    same command goes on.
    """
    sampling.options()  # what cannot be used is told before anything is opened
    if writing.status:
        _tell_status(files, json)
        return
    _check(writing, run, form, json)
    _check_prompt(choice, reading)
    status = Status(quiet=quiet, json=json)
    load = functools.cache(lambda: load_model(choice, status, drafting))
    how: ReadKeywords = {
        **reading.keywords(),
        "max_tiles": max_tiles,
        "max_pixels": max_pixels,
        "schema": form.schema,
        **sampling.given(),
    }
    tokens = min(sampling.max_tokens or TOKENS_OF_PAGE, TOKENS_OF_PAGE)
    estimate = estimator(choice, which, run, max_tiles=max_tiles, tokens=tokens)
    progress = PageProgress(status, estimate)
    given, passwords = given_documents(files), read_passwords(which.passwords)
    if writing.out is None and not run.dry_run:
        printer = _Printer("json" if json else writing.form, progress, sampling, times, load)
        results = read(
            given,
            model=load,
            pages=which.pages,
            passwords=passwords,
            jobs=which.jobs,
            logprobs=form.logprobs,
            found=printer.found,
            progress=progress.show,
            watcher=printer,
            **how,
        )
        has_failed = printer.print(results)
    else:
        tell_plan = functools.partial(print_plan, estimate, json)
        documents = read_documents(
            given,
            model=load,
            model_facts=lambda: facts_of_choice(choice, status),
            out=writing.out,
            format=writing.form,
            force=run.force,
            retry_failed=run.retry_failed,
            dry_run=run.dry_run,
            pages=which.pages,
            passwords=passwords,
            jobs=which.jobs,
            found=tell_plan if run.dry_run else progress.begin,
            progress=progress.show,
            **how,
        )
        has_failed = _run(documents, None if run.dry_run else writing.out, status)
    if has_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _check_prompt(choice: ModelChoice, reading: Reading) -> None:
    if choice.model == "demo" and reading.prompt in PRESETS[1:]:
        raise ConfigError(
            "The bundled model knows the prompt text only.",
            "Leave --prompt out, or name a --model.",
        )


def _run(documents: Iterator[DocumentResult], out: str | None, status: Status) -> bool:
    """Lets a run write its files, and tells whether a page has failed; None: it writes nothing."""
    with told_when_ended(status):
        for _ in documents:
            pass
    status.clear()
    if out is None:
        return False
    summary = run_status(out)
    if not status.quiet:
        print_summary(summary, file=sys.stderr)
    return summary.has_failed


def _check(writing: Writing, run: RunChoice, form: AnswerForm, json: bool) -> None:
    """ConfigError for options that mean nothing together."""
    form.check(json or (writing.out is None and writing.form in ("json", "jsonl")))
    if writing.out == "":
        raise ConfigError("--out is empty.", "Is the variable that it comes from set?")
    find_target(Path(writing.out or "."), writing.form)
    run.check(writing.out)
    if writing.out is not None and json and not run.dry_run:
        raise ConfigError("--json prints, and --out writes.", "Use --format json.")
    if writing.out is None and json and writing.form not in (None, "json"):
        raise ConfigError(f"--json and --format {writing.form} were given.", "Leave one out.")


def _tell_status(places: list[str], json: bool) -> None:
    if len(places) != 1:
        raise ConfigError("--status takes one place.", "Name what a run wrote to.")
    summary = run_status(places[0])
    if json:
        print_json(summary.to_dict())
    else:
        print_summary(summary, file=sys.stdout)


class _Printer:
    """Prints pages in their order: as they are done, or, where there is one alone, as it is being
    written."""

    def __init__(
        self,
        form: str | None,
        progress: PageProgress,
        sampling: Sampling,
        times: bool,
        load: Callable[[], Model],
    ) -> None:
        self._form = form or "md"
        self._progress, self._status = progress, progress.status
        self._sampling, self._times, self._load = sampling, times, load
        self._num_pages = self._num_documents = 0
        self._is_written = False
        self._last_path = ""
        self._to_terminal = sys.stdout.isatty()

    def found(self, progress: ReadProgress) -> None:
        self._num_pages, self._num_documents = progress.num_pages, progress.num_documents
        self._progress.begin(progress)

    @property
    def _is_live(self) -> bool:
        return self._num_pages == 1 and self._form in ("md", "txt")

    def begins(self, view: PageView) -> None:
        if self._num_pages == 1:
            self._status.show_encoding(view.num_tiles, view.title)

    def hears(self, view: PageView, text: str) -> None:
        if self._is_live:
            self._status.clear()
            self._is_written = True
            self._print(text, end="")

    def begins_again(self, view: PageView, how: str) -> None:
        if self._is_written:
            self._print("")
            self._is_written = False
        if self._num_pages == 1:
            self._status.note(f"{view.title} did not come out well, and is read again ({how}).")

    def print(self, results: Iterator[PageResult]) -> bool:
        """Prints all, and tells whether one has failed."""
        has_failed, kept = False, list[PageResult]()
        try:
            for page in results:
                has_failed = has_failed or page.has_failed
                self._status.clear()
                if self._form in ("json", "html"):
                    kept.append(page)
                elif self._form == "jsonl":
                    self._print(json_text(self._record(page)))
                else:
                    self._print_text(page)
                self._tell(page)
        except KeyboardInterrupt:
            if self._is_written:
                self._print("")
            raise
        if self._form == "json":
            print_json([self._record(page) for page in kept])
        elif self._form == "html":
            self._print("".join(render(_documents(kept), "html")), end="")
        return has_failed

    def _print_text(self, page: PageResult) -> None:
        if self._num_pages == 1:
            if not page.has_failed:
                self._print("" if self._is_written else page.text)
            return
        if self._form == "txt":
            self._print(page.text + "\f")
            return
        if page.number is None:  # a file without pages; stderr says why
            return
        if page.path != self._last_path and self._num_documents > 1:
            self._print(file_mark(page.path))
            self._last_path = page.path
        self._print(f"{page_mark(page)}\n\n{page.text}\n" if page.text else page_mark(page) + "\n")

    def _print(self, text: str, end: str = "\n") -> None:
        print(clean(text) if self._to_terminal else text, end=end, flush=True)

    def _tell(self, page: PageResult) -> None:
        """What is to be known of a page beside its text, on stderr."""
        title = page.title if self._num_pages > 1 else ""
        if page.error is not None:
            print_error(page.error.message, page.error.hint)
        elif page.status == "repeated":
            about = f"{title}: " if title else ""
            self._status.note(
                f"note: {about}the model went round in circles; this is its best attempt"
            )
        if page.answer is not None:
            most = self._sampling.max_tokens
            note_ending(
                page.answer, max_tokens=most, times=self._times, status=self._status, title=title
            )

    def _record(self, page: PageResult) -> JsonObject:
        has_tokens = page.answer is not None and page.answer.logprobs
        record = page.to_dict(self._load().engine.tokenizer if has_tokens else None)
        for key in ("error", "hint"):
            if isinstance(told := record.get(key), str):
                record[key] = spoken(told)
        return record


def _documents(pages: list[PageResult]) -> list[DocumentResult]:
    by_path = itertools.groupby(pages, key=lambda page: page.path)
    return [DocumentResult(path=path, pages=tuple(group)) for path, group in by_path]
