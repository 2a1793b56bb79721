"""All the text of files, page after page.

    for page in ivl.read(["scan.pdf", "receipt.png"], model=model):
        print(page.path, page.number, page.status, page.text)

A page that cannot be read says so and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, Unpack, cast

from ivl.engine.answer import Answer
from ivl.engine.options import GenerationKeywords, GenerationOptions, Schema
from ivl.engine.prompt_builder import LIMIT_OPTION, Images, MaxTiles, as_list
from ivl.errors import IvlError
from ivl.pages.reader import ImageSource, Page, open_pages, open_together
from ivl.pages.sources import DEFAULT_MAX_PIXELS, check_max_pixels, label_of, page_label
from ivl.prompt.tiles import Grid, choose_grids, num_tiles_with_thumbnail

if TYPE_CHECKING:  # pages are opened before torch is imported: a wrong name is told at once
    from ivl.config import ModelConfig
    from ivl.engine.conversation import Conversation, Generation

READ_QUESTION = "Read all the text in the image."


class Reader(Protocol):
    """What pages are read with; `ivl.Model` is one."""

    @property
    def config(self) -> ModelConfig: ...

    def conversation(self, system: str | None = None) -> Conversation: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """Page `number`, from 1, of the `count` pages of `path`, as a model sees it: of (width,
    height), cut into a grid of tiles. `num_tiles` counts the thumbnail too."""

    path: str
    number: int
    count: int
    size_px: tuple[int, int]
    grid: Grid
    num_tiles: int

    @property
    def title(self) -> str:
        """For people; the number is left out where there is one page."""
        return page_label(self.path, self.number, self.count)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "file": self.path,
            **({"page": self.number, "pages": self.count} if self.count > 1 else {}),
            "width": self.size_px[0],
            "height": self.size_px[1],
            "grid": {"columns": self.grid.columns, "rows": self.grid.rows},
            "tiles": self.num_tiles,
        }


def view_pages(
    pages: Sequence[Page],
    sizes_px: Sequence[tuple[int, int]],
    config: ModelConfig,
    max_tiles: MaxTiles = None,
) -> list[PageView]:
    """How pages of (width, height) that are shown together are cut."""
    grids = choose_grids(sizes_px, config, max_tiles) if pages else []
    return [
        PageView(
            path=page.name,
            number=page.number,
            count=page.count,
            size_px=size_px,
            grid=grid,
            num_tiles=num_tiles_with_thumbnail(grid, config.use_thumbnail),
        )
        for page, size_px, grid in zip(pages, sizes_px, grids, strict=True)
    ]


def open_shown(
    source: ImageSource, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[Page]:
    """The pages of a file that is asked about with all of them. Errors as in `open_together`, and
    those that are found only by decoding an image, or by measuring the pages of a PDF."""
    pages = open_together(source, name, max_pixels=max_pixels, limit_option=LIMIT_OPTION)
    if len(pages) == 1:
        image = pages[0].load(max_pixels=max_pixels, limit_option=LIMIT_OPTION)
        return [replace(pages[0], source=image)]
    for page in pages:
        page.size_px(max_pixels=max_pixels)
    return pages


@dataclass(frozen=True, slots=True, kw_only=True)
class PageResult:
    """What came of a page: its answer, or the error that kept it from being read.

    number, count: page `number`, from 1, of the `count` pages of `path`; None of a file that could
    not be opened. view: how the page was cut, where it was read.
    """

    path: str
    number: int | None = None
    count: int | None = None
    view: PageView | None = None
    answer: Answer | None = None
    error: IvlError | None = None

    @property
    def status(self) -> Literal["done", "cut off", "failed"]:
        """`cut off`: by `max_tokens`, or because the context was full."""
        if self.answer is None:
            return "failed"
        return "cut off" if self.answer.finish_reason == "length" else "done"

    @property
    def text(self) -> str:
        """All the text of the page; empty of one that failed."""
        return "" if self.answer is None else self.answer.text


def read(
    paths: Images | Sequence[ImageSource | tuple[str, ImageSource]],
    *,
    model: Reader | Callable[[], Reader],
    max_tiles: MaxTiles = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    system: str | None = None,
    schema: Schema = None,
    logprobs: int | None = None,
    began: Callable[[PageView, Generation], None] = lambda *_: None,
    **options: Unpack[GenerationKeywords],
) -> Iterator[PageResult]:
    """Reads all the text of files, and yields one result for every page, in order; also for one
    that failed, and for a file that cannot be opened.

    paths: files, or what else `Model.ask` takes for images; a pair has the name that a source shall
    have in results. All are opened before the first is read. model: a model, or what loads one,
    which is called when there is a page to read. began: called with each page before it is read;
    who takes the pieces of the generation there sees the text as it comes. The rest as of
    `Model.ask`.
    """
    check_max_pixels(max_pixels)
    chosen = GenerationOptions.of(options)
    for found in [_open(source, max_pixels) for source in as_list(cast("Images", paths))]:
        if isinstance(found, PageResult):
            yield found
            continue
        for page in found:
            if callable(model):
                model = model()
            result = PageResult(path=page.name, number=page.number, count=page.count)
            try:
                image = page.load(max_pixels=max_pixels, limit_option=LIMIT_OPTION)
                [view] = view_pages([page], [image.size], model.config, max_tiles)
                generation = model.conversation(system).ask(
                    READ_QUESTION,
                    image,
                    max_tiles=max_tiles,
                    max_pixels=max_pixels,
                    options=chosen,
                    schema=schema,
                    logprobs=logprobs,
                )
            except IvlError as error:
                yield replace(result, error=page.explain(error))
                continue
            began(view, generation)
            yield replace(result, view=view, answer=generation.result())


def _open(source: ImageSource | tuple[str, ImageSource], most: int) -> list[Page] | PageResult:
    """The pages of a file, or why it has none."""
    name, source = source if isinstance(source, tuple) else (None, source)
    try:
        return open_pages(source, name, max_pixels=most, limit_option=LIMIT_OPTION)
    except IvlError as error:
        return PageResult(path=name or label_of(source), error=error)
