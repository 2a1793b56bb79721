"""`ivl ask`: one question about images, answered as it comes."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from ivl.cli.inputs import load_model, open_images, split_question
from ivl.cli.options import (
    AnswerForm,
    Drafting,
    Json,
    MaxPixels,
    MaxTiles,
    ModelChoice,
    Quiet,
    Sampling,
    System,
    Times,
    with_options,
)
from ivl.cli.terminal import Status, answer_record, note_ending, print_answer, print_json
from ivl.documents.views import view_pages
from ivl.engine.options import DEFAULT_MAX_PIXELS


@with_options
def command(
    arguments: Annotated[
        list[str],
        Argument(metavar="[FILE]... QUESTION", hidden=True),
    ],
    *,
    max_tiles: MaxTiles = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    system: System = None,
    json: Json = False,
    times: Times = False,
    quiet: Quiet = False,
    choice: ModelChoice,
    form: AnswerForm,
    drafting: Drafting,
    sampling: Sampling,
) -> None:
    """Ask a question about images and PDFs.

    The question comes last, in quotation marks: ivl ask receipt.png "What is the total?" A file
    called - is read from stdin, and one with several pages, such as a PDF, is shown with all of
    them. Without a file, the model answers from what it knows.
    """
    names, question = split_question(arguments)
    options = sampling.options()
    form.check(json)
    pages = open_images(names, max_pixels)
    status = Status(quiet=quiet, json=json)
    model = load_model(choice, status, drafting)
    generation = model.conversation(system).ask(
        question,
        pages,
        max_tiles=max_tiles,
        max_pixels=max_pixels,
        options=options,
        schema=form.schema,
        logprobs=form.logprobs,
    )
    status.show_encoding(generation.request.num_new_tiles)
    answer = generation.result() if json else print_answer(generation, status)
    note_ending(answer, max_tokens=options.max_tokens, times=times, status=status)
    if json:
        sizes = [page.size_px(max_pixels=max_pixels) for page in pages]
        views = view_pages(pages, sizes, model.config, max_tiles)
        print_json(
            {
                "model": choice.model,
                **answer_record(answer, model),
                "images": [view.to_dict() for view in views],
            }
        )
