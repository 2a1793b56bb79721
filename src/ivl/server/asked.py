"""What is asked, by whichever API: texts and pictures, made ready for the engine.

Pictures are data URLs, base64, or addresses; a page of a PDF is a picture too.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from anyio import CapacityLimiter, to_thread

from ivl import IMAGE, ImageSlot, Message, Page
from ivl.engine.engine import Engine
from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions
from ivl.engine.prompt_builder import share_budget, split_pages
from ivl.engine.request import EngineRequest
from ivl.errors import RequestError
from ivl.server.errors import ApiError
from ivl.server.hub import ServedModel
from ivl.server.settings import ServerSettings

MAX_FETCHING = 4
"""Addresses of one request that are fetched at a time."""
BARE_CHARACTERS = 64
_BARE = re.compile(r"[A-Za-z0-9+/_\-\s]+")
_FROM_URL_ALPHABET = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class PictureSource:
    """A data URL, an address, or base64 alone; `max_tiles`: a limit of its own, `whole`: as many
    tiles as the model is made for, and no share."""

    url: str = ""
    base64: str = ""
    max_tiles: int | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A message: texts and pictures in their order."""

    role: Literal["system", "user", "assistant"]
    parts: Sequence[str | PictureSource]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an API asks for, apart from how its answer is written down: turns of a conversation, or
    texts to go on from."""

    turns: Sequence[Turn] = ()
    texts: Sequence[str] = ()
    options: GenerationOptions
    max_tiles: int | None = None
    context: int | None = None
    num_logprobs: int | None = None
    grammar: Callable[[Engine], Grammar | None]
    """The form that the answer must have, if any. Only then is the engine's compiler built."""


async def prepare(
    asked: Asked, model: ServedModel, settings: ServerSettings, limiter: CapacityLimiter
) -> list[EngineRequest]:
    """Fetches, decodes and cuts the pictures and tokenizes the text: a conversation, or each of the
    texts. `limiter`: of what is decoded at a time. Errors as of `EngineRequest.chat`, and
    RequestError for pictures that cannot be had."""
    if len(asked.turns) > settings.max_messages:
        raise ApiError(400, f"A request has at most {settings.max_messages} messages.")
    sources = [part for turn in asked.turns for part in turn.parts if not isinstance(part, str)]
    _check_count(len(sources), settings)
    for source in sources:
        if source.url:
            _check_url(source.url, settings)
    fetched = await _fetch({source.url for source in sources if _is_remote(source.url)})
    return await to_thread.run_sync(_prepare, asked, model, settings, fetched, limiter=limiter)


async def _fetch(urls: set[str]) -> dict[str, bytes]:
    """The files at these addresses, a few at a time; the first error is the request's. Other
    requests' images are decoded meanwhile."""
    if not urls:
        return {}
    from ivl.server.remote import fetch

    limiter = CapacityLimiter(MAX_FETCHING)
    tasks = {
        url: asyncio.ensure_future(to_thread.run_sync(fetch, url, limiter=limiter)) for url in urls
    }
    try:
        return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


def _prepare(
    asked: Asked, model: ServedModel, settings: ServerSettings, fetched: dict[str, bytes]
) -> list[EngineRequest]:
    # A form that cannot be had is told before any image is decoded.
    engine = model.engine
    grammar = asked.grammar(engine)
    if asked.texts:
        return [
            EngineRequest.completion(
                engine,
                text,
                context=asked.context,
                options=asked.options,
                num_logprobs=asked.num_logprobs,
                grammar=grammar,
            )
            for text in asked.texts
        ]
    pictures: list[tuple[Page, PictureSource]] = []
    turns: list[tuple[Turn, list[str | int]]] = []
    for turn in asked.turns:
        parts: list[str | int] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append(part)
                continue
            pages = pages_of(_bytes_of(part, fetched), settings)
            parts.append(len(pages))
            pictures += [(page, part) for page in pages]
        _check_count(len(pictures), settings)
        turns.append((turn, parts))
    messages = _messages(turns, len(pictures))
    whole = asked.max_tiles or engine.config.max_tiles
    shares = share_budget(len(pictures), whole)
    request = EngineRequest.chat(
        engine,
        messages,
        [picture for picture, _ in pictures],
        max_tiles=[
            source.max_tiles or (whole if source.whole else share)
            for (_, source), share in zip(pictures, shares, strict=True)
        ],
        max_pixels=settings.max_image_pixels,
        context=asked.context,
        options=asked.options,
        num_logprobs=asked.num_logprobs,
        grammar=grammar,
    )
    return [request]


def _messages(turns: list[tuple[Turn, list[str | int]]], num_images: int) -> list[Message]:
    """Messages as the model knows them: a text and its pictures, the pictures first.

    Where texts and pictures take turns they keep their order. One picture has no name; several
    are "Image-1: ", "Image-2: " through the whole conversation, as in the official examples.
    """
    count = 0
    messages = []
    for turn, given in turns:
        texts = [part for part in given if isinstance(part, str)]
        if turn.role != "user" and len(texts) < len(given):
            raise RequestError("Only messages of the user can show images.")
        ordered = given if len(texts) > 1 else [*(p for p in given if p not in texts), *texts]
        parts: list[str | ImageSlot] = []
        for part in ordered:
            if isinstance(part, str):
                parts.append(part)
                continue
            for _ in range(part):
                count += 1
                parts += [f"Image-{count}: "] if num_images > 1 else []
                parts += [IMAGE, "\n"]
        messages.append(Message(turn.role, tuple(parts)))
    return messages


def pages_of(data: bytes, settings: ServerSettings) -> list[Page]:
    """The pages of a file that are asked about: one image, or every page of a PDF, a TIFF or an
    animation."""
    most, max_pixels = settings.max_images, settings.max_image_pixels
    return split_pages(data, max_pixels=max_pixels, most=most, limit_option=None)[0]


def _bytes_of(source: PictureSource, fetched: dict[str, bytes]) -> bytes:
    if source.base64:
        return decode_base64(source.base64, "An image")
    if source.url in fetched:
        return fetched[source.url]
    return decode_base64(source.url, "An image's address")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 as programs make it: with line breaks and blanks, with or without
    padding, in the alphabet of addresses too, or as a data URL, `data:[type];base64,...` (RFC
    2397). RequestError for what is none."""
    if _is_data_url(text):
        head, comma, data = text.strip().partition(",")
        if not comma or not head.lower().rstrip().endswith(";base64"):
            raise RequestError(
                "A data URL has the form data:image/png;base64,... here.",
                "Encode the file in base64.",
            )
        return decode_base64(unquote(data) if "%" in data else data, "The data URL")
    plain = "".join(text.split()).rstrip("=").translate(_FROM_URL_ALPHABET)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{what} is not valid base64.", _base64_hint(text)) from None


def _base64_hint(text: str) -> str:
    """What programs do in the place of encoding a file."""
    beginning = text.strip()[:64]
    if beginning.startswith(("b'", 'b"')):
        return "It is Python's bytes written out: add .decode() to base64.b64encode(...)."
    if _is_remote(beginning) or re.match(r"file:|~|[.]{0,2}/|[A-Za-z]:[\\/]", beginning):
        return "Send the file's bytes in base64: addresses and paths are not read here."
    return "Encode the bytes of the whole file."


def _is_data_url(text: str) -> bool:
    return text[:64].lstrip()[:5].lower() == "data:"


def _is_remote(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _check_url(url: str, settings: ServerSettings) -> None:
    """RequestError for an address that is neither data nor one that this server may fetch. A file's
    base64 often stands there alone; paths and names are too short, or have other characters."""
    is_bare = len(url) >= BARE_CHARACTERS and _BARE.fullmatch(url[:BARE_CHARACTERS]) is not None
    if _is_data_url(url) or is_bare:
        return
    if url[:5].lower() == "file:":
        raise RequestError(
            "This server reads no files of its own machine.",
            "Send a data URL, data:image/png;base64,..., with the file's bytes.",
        )
    if not _is_remote(url):
        raise RequestError(
            "An image is a data URL here.", "Send data:image/png;base64,... with the file's bytes."
        )
    if not settings.remote_images:
        raise RequestError(
            "This server does not fetch images from addresses.",
            "Send a data URL, or start it with --remote-images.",
        )


def _check_count(num_images: int, settings: ServerSettings) -> None:
    """ApiError 400 for more images than a request may have."""
    if num_images > settings.max_images:
        raise ApiError(
            400,
            f"The request has {num_images} images, and may have {settings.max_images}.",
            code="too_many_images",
        )
