"""What is found out about a page before a model sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivl.documents.blank import is_blank
from ivl.documents.orientation import lines_run
from ivl.documents.prompts import READ_QUESTION, question_of
from ivl.documents.results import PageResult
from ivl.documents.text_layer import judge, layer_text
from ivl.engine.options import GenerationKeywords, GenerationOptions, Schema
from ivl.engine.prompt_builder import LIMIT_OPTION
from ivl.errors import IvlError, RequestError
from ivl.pages.reader import Page
from ivl.pages.sources import DEFAULT_MAX_PIXELS, check_max_pixels
from ivl.pages.text_layer import TextLayer

# What is drawn of a page turned by so many degrees, counterclockwise, without a pixel lost.
_TURNS: Final = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


TextLayerUse: TypeAlias = Literal["auto", "only", "ignore", "check"]
"""auto: where plain text is wanted, a good layer is taken; other pages are read. only: nothing is
read. ignore: all pages are read. check: all pages are read, and said where a layer differs."""
TEXT_LAYER_USES: Final[tuple[TextLayerUse, ...]] = get_args(TextLayerUse)


class ReadKeywords(GenerationKeywords, total=False):
    """How pages are read, as keyword arguments; with those of `GenerationOptions`.

    prompt: `text`, `markdown`, `html` (Markdown with tables as HTML), or a question of one's own;
    keep_headers: with the headers and footers of pages. max_tiles, max_pixels, system, schema: as
    of `Model.ask`. retry: a page on which the model goes round in circles, or whose text does not
    fit into the context, is read again in other ways. skip_blank: blank pages are found out before
    the model, which would invent text for them. rotate: a page that lies on its side or stands on
    its head is turned. text_layer: what is done with the text that a PDF carries, `TextLayerUse`.
    """

    prompt: str
    keep_headers: bool
    max_tiles: int | None
    max_pixels: int
    system: str | None
    schema: Schema
    retry: bool
    skip_blank: bool
    rotate: bool
    text_layer: TextLayerUse


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """What decides about the text of a page, beside the page and the model; see `ReadKeywords`.
    question: what the model is asked."""

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
    text_layer: TextLayerUse = "auto"

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)
        if self.text_layer not in TEXT_LAYER_USES:
            known = ", ".join(TEXT_LAYER_USES)
            raise RequestError(f"There is no `text_layer` {self.text_layer!r}.", f"Known: {known}.")
        if self.text_layer == "only" and self.schema is not None:
            raise RequestError(
                "With `text_layer` only nothing is read, and a layer has no form.",
                "Leave the schema out, or `text_layer`.",
            )

    @classmethod
    def of(cls, given: ReadKeywords, logprobs: int | None = None) -> ReadSettings:
        """Checked; RequestError for what means nothing, and for names that are no option."""
        options = dict(given)
        question = question_of(
            cast(str, options.pop("prompt", "text")),
            keep_headers=bool(options.pop("keep_headers", False)),
        )
        own = {name: options.pop(name) for name in _OWN if name in options}
        generation = GenerationOptions.of(options)
        return cls(question=question, generation=generation, logprobs=logprobs, **own)  # type: ignore[arg-type]

    @property
    def takes_layers(self) -> bool:
        """Whether a text layer, which is plain text, can be what was asked for."""
        plain = self.question == READ_QUESTION and self.schema is None
        return self.text_layer == "auto" and plain


_OWN: Final = (
    *("max_tiles", "max_pixels", "system", "schema", "retry", "skip_blank", "rotate"),
    "text_layer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A page that a model shall read. `image`: as it is held; `is_turned`: its lines of text seem
    to run down it."""

    page: Page
    image: Image.Image
    result: PageResult
    is_turned: bool = False
    layer: str | None = None
    """The text layer that the reading is to be compared with."""


def look_at(page: Page, settings: ReadSettings) -> Seen | PageResult:
    """The page, drawn; or what came of it, where no model is needed for that."""
    result = PageResult(
        path=page.name, number=page.number, count=page.count, label=page.label, status="ok"
    )
    if page.num_attachments and page.number == 1:
        files = "a file" if page.num_attachments == 1 else f"{page.num_attachments} files"
        result = replace(result, notes=(f"The PDF carries {files} along, not read here.",))
    try:
        layer = _layer(page, settings)
        if settings.text_layer == "only" and layer is not None:
            return replace(result, status="text-layer", text=layer_text(layer))
        image = draw(page, settings)
    except IvlError as error:
        return failed(result, page, error)
    if settings.takes_layers and layer is not None:
        judgement = judge(layer, image)
        if judgement.is_good:
            return replace(result, status="text-layer", text=layer_text(layer))
        note = f"The text layer was not used: {judgement.reason}"
        result = replace(result, notes=(*result.notes, note))
    has_text = layer is not None and layer.hidden_share < 1
    if settings.skip_blank and not has_text and is_blank(image):
        return replace(result, status="blank")
    if settings.text_layer == "only":
        hint = 'With `text_layer="auto"` it is read.'
        return failed(result, page, RequestError(f"{page.title} has no text layer.", hint))
    is_turned = settings.rotate and lines_run(image) == "down"
    compared = None
    if settings.text_layer == "check":
        compared = "" if layer is None else layer_text(layer)
    return Seen(page=page, image=image, result=result, is_turned=is_turned, layer=compared)


def _layer(page: Page, settings: ReadSettings) -> TextLayer | None:
    """The page's text layer. One that cannot be had is none, unless it is all that is wanted."""
    if settings.text_layer == "ignore":
        return None
    try:
        return page.text_layer()
    except IvlError:
        if settings.text_layer == "only":
            raise
        return None


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
