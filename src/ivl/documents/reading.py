"""All the text of files, page after page.

    pages = open_pages("scan.tif")
    for reading in read_pages(model, pages):
        print(reading.page.title, reading.generation.result().text)

The pictures of a TIFF, a GIF or another file with several are pages of their own. A page that
cannot be read says so and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ivl.engine.request import LIMIT_OPTION, choose_grids
from ivl.engine.schema import Schema
from ivl.errors import IvlError
from ivl.prompt.pixels import DEFAULT_MAX_PIXELS, ImageSource, load_image, num_frames, rereadable
from ivl.prompt.tiles import Grid

if TYPE_CHECKING:  # pages are opened before torch is imported: a wrong name is told at once
    from ivl.api import Model
    from ivl.engine.conversation import Generation
    from ivl.engine.options import GenerationOptions

READ_QUESTION = "Read all the text in the image."


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Page `number`, from 1, of the `count` pages of a file called `name`."""

    name: str
    source: ImageSource
    number: int
    count: int

    @property
    def title(self) -> str:
        of_several = f", page {self.number} of {self.count}" if self.count > 1 else ""
        return self.name + of_several

    def load(self, *, max_pixels: int | None = None) -> Image.Image:
        """The page as upright RGB; RequestError when it is damaged, or has more than `max_pixels`
        (None: the usual limit, for callers who cannot raise it)."""
        return load_image(
            self.source,
            frame=self.number - 1,
            max_pixels=DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
            limit_option=None if max_pixels is None else LIMIT_OPTION,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A page and its text while it comes, or the error that kept it from being read."""

    page: Page
    size_px: tuple[int, int] = (0, 0)
    """Width and height; known, as the grid is, unless there is an error."""
    grid: Grid | None = None
    generation: Generation | None = None
    error: IvlError | None = None


def open_pages(
    source: ImageSource, name: str | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[Page]:
    """The pages of a file, found from its headers; RequestError when it is no image, or its first
    page has more than `max_pixels`."""
    original, source = source, rereadable(source)
    count = num_frames(source, max_pixels=max_pixels, limit_option=LIMIT_OPTION)
    called = str(original) if name is None else name
    return [
        Page(name=called, source=source, number=number, count=count)
        for number in range(1, count + 1)
    ]


def read_pages(
    model: Model,
    pages: Iterable[Page],
    *,
    max_tiles: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    options: GenerationOptions | None = None,
    schema: Schema = None,
    logprobs: int | None = None,
) -> Iterator[Reading]:
    """One reading for every page, in order; the next begins when the last has been used up."""
    for page in pages:
        try:
            image = page.load(max_pixels=max_pixels)
            [grid] = choose_grids([image.size], model.config, max_tiles)
            generation = model.conversation().ask(
                READ_QUESTION,
                image,
                max_tiles=max_tiles,
                max_pixels=max_pixels,
                options=options,
                schema=schema,
                logprobs=logprobs,
            )
        except IvlError as error:
            yield Reading(page=page, error=error)
        else:
            yield Reading(page=page, size_px=image.size, grid=grid, generation=generation)
