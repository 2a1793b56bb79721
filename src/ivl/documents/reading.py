"""All the text of files, page after page.

    pages = open_pages("scan.pdf")
    for reading in read_pages(model, pages):
        print(reading.page.title, reading.generation.result().text)

A page that cannot be read says so and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ivl.engine.options import Schema
from ivl.engine.prompt_builder import LIMIT_OPTION, MaxTiles
from ivl.errors import IvlError
from ivl.pages.reader import Page
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.prompt.tiles import Grid, choose_grids

if TYPE_CHECKING:  # pages are opened before torch is imported: a wrong name is told at once
    from ivl.api import Model
    from ivl.engine.conversation import Generation
    from ivl.engine.options import GenerationOptions

READ_QUESTION = "Read all the text in the image."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A page and its text while it comes, or the error that kept it from being read."""

    page: Page
    size_px: tuple[int, int] = (0, 0)
    """Width and height; known, as the grid is, unless there is an error."""
    grid: Grid | None = None
    generation: Generation | None = None
    error: IvlError | None = None


def read_pages(
    model: Model,
    pages: Iterable[Page],
    *,
    max_tiles: MaxTiles = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    system: str | None = None,
    options: GenerationOptions | None = None,
    schema: Schema = None,
    logprobs: int | None = None,
) -> Iterator[Reading]:
    """One reading for every page, in order; the next begins when the last has been used up. An
    error names the page that it is about."""
    for page in pages:
        try:
            image = page.load(max_pixels=max_pixels, limit_option=LIMIT_OPTION)
            [grid] = choose_grids([image.size], model.config, max_tiles)
            generation = model.conversation(system).ask(
                READ_QUESTION,
                image,
                max_tiles=max_tiles,
                max_pixels=max_pixels,
                options=options,
                schema=schema,
                logprobs=logprobs,
            )
        except IvlError as error:
            yield Reading(page=page, error=page.explain(error))
        else:
            yield Reading(page=page, size_px=image.size, grid=grid, generation=generation)
