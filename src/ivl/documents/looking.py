"""What is found out about a page before a model sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivl.documents.blank import is_blank
from ivl.documents.orientation import lines_run
from ivl.documents.prompts import READ_QUESTION
from ivl.documents.results import PageResult
from ivl.engine.options import GenerationOptions, Schema
from ivl.engine.prompt_builder import LIMIT_OPTION
from ivl.errors import IvlError
from ivl.pages.reader import Page
from ivl.pages.sources import DEFAULT_MAX_PIXELS, check_max_pixels

if TYPE_CHECKING:
    pass

# What is drawn of a page turned by so many degrees, counterclockwise, without a pixel lost.
_TURNS: Final = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """What decides about the text of a page, beside the page and the model.

    question: what the model is asked. retry: pages that end badly are tried again in other ways.
    skip_blank: blank pages are not shown to the model. rotate: pages that lie on their side or
    stand on their head are turned.
    """

    question: str = READ_QUESTION
    max_tiles: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    system: str | None = None
    schema: Schema = None
    logprobs: int | None = None
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    retry: bool = True
    skip_blank: bool = True
    rotate: bool = True

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A page that a model shall read. `image`: as it is held; `is_turned`: its lines of text seem
    to run down it."""

    page: Page
    image: Image.Image
    result: PageResult
    is_turned: bool = False


def look_at(page: Page, settings: ReadSettings) -> Seen | PageResult:
    """The page, drawn; or what came of it, where no model is needed for that."""
    result = PageResult(
        path=page.name, number=page.number, count=page.count, label=page.label, status="ok"
    )
    try:
        image = draw(page, settings)
    except IvlError as error:
        return failed(result, page, error)
    if settings.skip_blank and is_blank(image):
        return replace(result, status="blank")
    is_turned = settings.rotate and lines_run(image) == "down"
    return Seen(page=page, image=image, result=result, is_turned=is_turned)


def draw(page: Page, settings: ReadSettings, turned: int = 0) -> Image.Image:
    """The page as RGB, turned by so many degrees counterclockwise. Errors as of `Page.load`."""
    image = page.load(max_pixels=settings.max_pixels, limit_option=LIMIT_OPTION)
    return turn(image, turned)


def turn(image: Image.Image, degrees: int) -> Image.Image:
    """Turned by 0, 90, 180 or 270 degrees, counterclockwise."""
    return image.transpose(_TURNS[degrees]) if degrees else image


def failed(result: PageResult, page: Page, error: IvlError) -> PageResult:
    """The page with an error that names it."""
    return replace(result, status="failed", error=page.explain(error))


_PROBED_PX: Final = 896


def most_inked(image: Image.Image) -> Image.Image:
    """A square of the page, of two tiles' width at most, in which there is most to be seen."""
    width, height = image.size
    side = min(width, height, _PROBED_PX)
    steps = np.asarray(image.convert("L").reduce(4), dtype=np.int16)
    down = np.abs(np.diff(steps, axis=0)).sum(axis=1)
    across = np.abs(np.diff(steps, axis=1)).sum(axis=0)
    left, top = (_best_start(sums, side // 4) * 4 for sums in (across, down))
    left, top = min(left, width - side), min(top, height - side)
    return image.crop((left, top, left + side, top + side))


def _best_start(sums: NDArray[np.int64], length: int) -> int:
    """Where the stretch of this length begins that has the largest sum."""
    if len(sums) <= length or length < 1:
        return 0
    totals = np.concatenate([[0], np.cumsum(sums)])
    return int(np.argmax(totals[length:] - totals[:-length]))
