"""`ivl read`: all the text of files, page after page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from ivl.cli.inputs import STDIN, load_model, pixel_limit, read_stdin
from ivl.cli.options import (
    AnswerForm,
    Drafting,
    Json,
    MaxPixels,
    MaxTiles,
    ModelChoice,
    Quiet,
    Sampling,
    Times,
    with_options,
)
from ivl.cli.terminal import (
    Status,
    answer_record,
    image_record,
    note_ending,
    print_answer,
    print_error,
    print_json,
)
from ivl.cli.words import spoken
from ivl.documents.reading import Reading, read_pages
from ivl.engine.prompt_builder import LIMIT_OPTION
from ivl.errors import IvlError
from ivl.pages.reader import Page, open_pages

if TYPE_CHECKING:
    from ivl.api import Model

EXIT_SOME_FAILED = 2


@with_options
def command(
    files: Annotated[list[str], Argument(metavar="FILE...", hidden=True)],
    *,
    max_tiles: MaxTiles = None,
    max_pixels: MaxPixels = None,
    json: Json = False,
    times: Times = False,
    quiet: Quiet = False,
    choice: ModelChoice,
    form: AnswerForm,
    drafting: Drafting,
    sampling: Sampling,
) -> None:
    """Read all the text in images and PDFs.

    The pages of a PDF and the pictures of a TIFF or GIF file are read one by one, and the file - is
    stdin. A page that cannot be read does not stop the others, and the exit code is 2.
    """
    options = sampling.options()
    form.check(json)
    status = Status(quiet=quiet, json=json)
    limit = pixel_limit(max_pixels)
    opened = [_open(name, limit) for name in files]
    num_pages = sum(len(pages) for pages in opened if not isinstance(pages, IvlError))
    report = Printer(status, titled=len(files) > 1 or num_pages > 1, json=json, times=times)
    model = load_model(choice, status, drafting) if num_pages else None
    for name, pages in zip(files, opened, strict=True):
        if isinstance(pages, IvlError):
            report.add_failure(name, pages)
            continue
        assert model is not None
        for reading in read_pages(
            model,
            pages,
            max_tiles=max_tiles,
            max_pixels=limit,
            options=options,
            schema=form.schema,
            logprobs=form.logprobs,
        ):
            report.add(reading, model, sampling.max_tokens)
    if json:
        print_json(report.records)
    if report.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _open(name: str, max_pixels: int) -> list[Page] | IvlError:
    """The pages of a file, or why it has none."""
    try:
        source = read_stdin() if name == STDIN else name
        return open_pages(source, name, max_pixels=max_pixels, limit_option=LIMIT_OPTION)
    except IvlError as error:
        return error


class Printer:
    """Prints readings as they come, or gathers them for JSON."""

    def __init__(self, status: Status, *, titled: bool, json: bool, times: bool) -> None:
        self.status, self.titled, self.json, self.times = status, titled, json, times
        self.failed = False
        self.records: list[dict[str, Any]] = []
        self._num_titles = 0

    def add(self, reading: Reading, model: Model, max_tokens: int | None) -> None:
        page, use_thumbnail = reading.page, model.config.use_thumbnail
        if reading.error is not None:
            self.add_failure(page.title, reading.error, page)
            return
        assert reading.generation is not None
        assert reading.grid is not None
        self._print_title(page.title)
        self.status.show_encoding([reading.grid], use_thumbnail, page.title)
        if self.json:
            answer = reading.generation.result()
        else:
            answer = print_answer(reading.generation, self.status)
        note_ending(
            answer,
            max_tokens=max_tokens,
            times=self.times,
            status=self.status,
            title=page.title if self.titled else "",
        )
        image = image_record(page.name, reading.size_px, reading.grid, use_thumbnail)
        told = answer_record(answer, model.engine.tokenizer)
        self.records.append({**image, "page": page.number, "pages": page.count, **told})

    def add_failure(self, title: str, error: IvlError, page: Page | None = None) -> None:
        self.failed = True
        self.status.clear()
        print_error(error)
        record: dict[str, Any] = {"file": page.name if page else title}
        if page is not None:
            record |= {"page": page.number, "pages": page.count}
        told = {"error": spoken(error.message), "hint": spoken(error.hint)}
        self.records.append({**record, **told})

    def _print_title(self, title: str) -> None:
        if self.titled and not self.json:
            blank = "\n" if self._num_titles else ""
            print(f"{blank}==> {title} <==", flush=True)
            self._num_titles += 1
