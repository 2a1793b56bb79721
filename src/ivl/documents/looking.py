"""What is found out about a page before a model sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from PIL import Image

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
    """

    question: str = READ_QUESTION
    max_tiles: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    system: str | None = None
    schema: Schema = None
    logprobs: int | None = None
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    retry: bool = True

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A page that a model shall read: `image` is upright RGB, as far as that is known."""

    page: Page
    image: Image.Image
    result: PageResult


def look_at(page: Page, settings: ReadSettings) -> Seen | PageResult:
    """The page, drawn; or what came of it, where no model is needed for that."""
    result = PageResult(path=page.name, number=page.number, count=page.count, status="ok")
    try:
        image = draw(page, settings)
    except IvlError as error:
        return failed(result, page, error)
    return Seen(page=page, image=image, result=result)


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
