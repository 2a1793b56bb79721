"""From messages and images to what a model reads: token ids, and tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ivl.config import NO_IMAGES, ModelConfig
from ivl.errors import CapacityError, RequestError
from ivl.pages.reader import (
    DEFAULT_MOST_PAGES,
    ImageSource,
    Page,
    load_image,
    open_together,
)
from ivl.pages.sources import DEFAULT_MAX_PIXELS, check_max_pixels
from ivl.paths import names_file
from ivl.prompt.template import (
    Control,
    ImageTokens,
    Message,
    Prompt,
    Text,
    get_template,
    render,
    render_next,
)
from ivl.prompt.tiles import LARGEST_MAX_TILES as LARGEST_MAX_TILES
from ivl.prompt.tiles import choose_grid, cut_tiles, num_tiles_with_thumbnail, share_budget
from ivl.prompt.tokenizer import Tokenizer
from ivl.spelling import counted

MaxTiles = int | Sequence[int] | None
Images = ImageSource | Sequence[ImageSource] | Iterator[ImageSource] | None
"""One image or several, such as `folder.glob("*.png")`; None: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """ids, and which of them are places for image features; lists of equal length."""

    ids: list[int]
    is_image: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(prompt: Prompt, tokenizer: Tokenizer, *, bos: bool = True) -> TokenizedPrompt:
    """Token ids of a prompt's segments; only its `Control` segments become control tokens.

    `bos` puts the tokenizer's beginning-of-text token in front, if it has one; a later turn of a
    conversation has none.
    """
    ids = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
    is_image = [False] * len(ids)
    for segment in prompt:
        match segment:
            case Control(name):
                new = [tokenizer.control(name)]
            case Text(text):
                new = tokenizer.encode_text(text)
            case ImageTokens(num_tokens=num_tokens):
                new = [tokenizer.control("<IMG_CONTEXT>")] * num_tokens
        ids += new
        is_image += [isinstance(segment, ImageTokens)] * len(new)
    return TokenizedPrompt(ids=ids, is_image=is_image)


def build_prompt(
    messages: Sequence[Message],
    config: ModelConfig,
    tokenizer: Tokenizer,
    tiles_per_image: Sequence[int] = (),
    *,
    system: str | None = None,
    is_next: bool = False,
) -> TokenizedPrompt:
    """The prompt that the model is asked with; `system` None is its own system message.

    `is_next`: the one message follows an answer, whose end the prompt begins with. RequestError
    where turns, images and slots do not fit.
    """
    template = get_template(config.template, config.system)
    tokens_per_tile = config.tokens_per_tile if config.vision else 0
    if is_next:
        [message] = messages
        prompt = render_next(
            message,
            template=template,
            tiles_per_image=tiles_per_image,
            tokens_per_tile=tokens_per_tile,
        )
    else:
        prompt = render(
            messages,
            template=template,
            system=system,
            tiles_per_image=tiles_per_image,
            tokens_per_tile=tokens_per_tile,
        )
    return tokenize(prompt, tokenizer, bos=not is_next)


def as_list(images: Images) -> list[ImageSource]:
    """One image, several, or none, as a list."""
    if images is None:
        return []
    is_file = hasattr(images, "read")  # which is iterated over by lines
    is_many = isinstance(images, list | tuple) or (isinstance(images, Iterator) and not is_file)
    return list(images) if is_many else [images]  # type: ignore[arg-type]


def check_order(question: object, images: Images, hint: str) -> None:
    """RequestError for a question that is no text, and where it has changed places with an image;
    the hint says which comes first."""
    if not isinstance(question, str):
        raise RequestError(f"The question is a {type(question).__name__}, not a text.", hint)
    if isinstance(images, str) and names_file(question) and not names_file(images):
        raise RequestError(f"The question is the name of a file, {question}.", hint)


LIMIT_OPTION = "max_pixels"
"""What the limit is called in the Python API; the command line has an option of that name."""


def split_pages(
    images: Images,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    most: int = DEFAULT_MOST_PAGES,
    limit_option: str | None = LIMIT_OPTION,
) -> list[list[Page]]:
    """The pages of each image, for `prepare_images`. Arguments and errors as of `open_together`."""
    check_max_pixels(max_pixels)
    return [
        open_together(image, max_pixels=max_pixels, most=most, limit_option=limit_option)
        for image in as_list(images)
    ]


def prepare_images(
    images: Sequence[ImageSource],
    config: ModelConfig,
    max_tiles: MaxTiles = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    context: int | None = None,
    limit_option: str | None = None,
) -> tuple[np.ndarray | None, list[int]]:
    """Tiles of all images, uint8 (n, tile_px, tile_px, 3), and how many each of them gave.

    `max_tiles` is a budget that the images share, or one limit for each; None is the model's own.
    Every image may be what `load_image` takes, with one page (see `split_pages`). Without images
    the tiles are None. One image at a time is decoded. RequestError for one of several pages, or of
    more than `max_pixels` (`limit_option` as there), CapacityError as soon as the tiles have more
    than `context` image tokens.
    """
    if not images:
        return None, []
    if config.vision is None:
        raise RequestError(NO_IMAGES, config.blind_hint)
    limits = share_budget(len(images), config.max_tiles if max_tiles is None else max_tiles)
    tiles, num_tokens = [], 0
    for source, limit in zip(images, limits, strict=True):
        image = load_image(source, frame=None, max_pixels=max_pixels, limit_option=limit_option)
        grid = choose_grid(image.size, config, limit)
        num_tiles = num_tiles_with_thumbnail(grid, config.use_thumbnail)
        num_tokens += num_tiles * config.tokens_per_tile
        if context is not None and num_tokens > context:
            raise CapacityError(
                f"The images have more than the {context} tokens that the context holds.",
                "Use fewer images, or a smaller `max_tiles`.",
            )
        tiles.append(
            cut_tiles(image, grid, tile_px=config.tile_px, use_thumbnail=config.use_thumbnail)
        )
    return np.concatenate(tiles), [len(t) for t in tiles]


def check_capacity(
    prompt: TokenizedPrompt, num_cached: int, context: int, num_tiles: int, config: ModelConfig
) -> int:
    """How many tokens the answer may have; CapacityError when not even one fits."""
    room = context - num_cached - len(prompt)
    if room >= 1:
        return room
    held = f" after {num_cached} of the conversation" if num_cached else ""
    num_image_tokens = num_tiles * config.tokens_per_tile if num_tiles else 0
    images = ""
    if num_tiles:
        images = f", {num_image_tokens} of them for {counted(num_tiles, 'tile')}"
    text_fits = room + num_image_tokens >= 1
    ways = ["Shorten the text"]
    if num_tiles > 1 and text_fits:
        ways = ["Use fewer images", "fewer tiles (`max_tiles`)"]
    if context < config.decoder.longest_context:
        ways.append("load the model with a larger context (`context`)")
    if num_cached:
        ways.append("begin a new conversation")
    raise CapacityError(
        f"The question has {len(prompt)} tokens{held}{images}, and the context holds {context}.",
        f"{', or '.join(ways)}.",
    )
