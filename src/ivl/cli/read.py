"""`ivl read`: all the text of files, page after page."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument

from ivl.cli.inputs import STDIN, load_model, read_stdin
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
from ivl.cli.terminal import Status, answer_record, note_ending, print_answer, print_json
from ivl.cli.words import print_error, spoken
from ivl.documents.reading import PageResult, PageView, read
from ivl.engine.options import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from ivl.api import Model
    from ivl.engine.conversation import Generation

EXIT_SOME_FAILED = 2


@with_options
def command(
    files: Annotated[list[str], Argument(metavar="FILE...", hidden=True)],
    *,
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

    The pages of a PDF and the pictures of a TIFF or GIF file are read one by one, and the file - is
    stdin. A page that cannot be read does not stop the others, and the exit code is 2.
    """
    sampling.options()  # what cannot be used is told before anything is opened
    form.check(json)
    status = Status(quiet=quiet, json=json)
    load = functools.cache(lambda: load_model(choice, status, drafting))
    num_titles = 0

    def title_of(page: PageView) -> str:
        return page.title if len(files) > 1 or page.count > 1 else ""

    def print_page(page: PageView, generation: Generation) -> None:
        nonlocal num_titles
        title = title_of(page)
        if title and not json:
            print("\n" * (num_titles > 0) + f"==> {title} <==", flush=True)
            num_titles += 1
        status.show_encoding(page.num_tiles, page.title)
        if not json:
            print_answer(generation, status)

    pages = read(
        [(name, read_stdin()) if name == STDIN else name for name in files],
        model=load,
        max_tiles=max_tiles,
        max_pixels=max_pixels,
        schema=form.schema,
        logprobs=form.logprobs,
        began=print_page,
        **sampling.given(),
    )
    records, has_failed = [], False
    for page in pages:
        if page.error is not None:
            status.clear()
            print_error(page.error.message, page.error.hint)
            has_failed = True
        if page.answer is not None and page.view is not None:
            about, most = title_of(page.view), sampling.max_tokens
            note_ending(page.answer, max_tokens=most, times=times, status=status, title=about)
        if json:
            records.append(_record(page, load))
    if json:
        print_json(records)
    if has_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _record(page: PageResult, load: Callable[[], Model]) -> dict[str, object]:
    """For JSON."""
    number = {} if page.number is None else {"page": page.number, "pages": page.count}
    if page.error is not None:
        told = {"error": spoken(page.error.message), "hint": spoken(page.error.hint)}
        return {"file": page.path, **number, **told}
    assert page.view is not None
    assert page.answer is not None
    answer = answer_record(page.answer, load())
    return {**page.view.to_dict(), **number, **answer}
