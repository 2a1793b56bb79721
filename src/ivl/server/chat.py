"""A conversation with pictures, of whichever API, made ready for the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from anyio import CapacityLimiter, to_thread

from ivl.engine.grammar import Grammar, GrammarCompiler
from ivl.engine.options import GenerationOptions
from ivl.engine.request import EngineRequest
from ivl.errors import RequestError
from ivl.pages.reader import Page
from ivl.prompt.template import IMAGE, Message, Part
from ivl.prompt.tiles import share_budget
from ivl.server.answers import Preparation
from ivl.server.errors import ApiError
from ivl.server.hub import ServedModel
from ivl.server.pictures import (
    check_count,
    check_url,
    decode_base64,
    is_remote,
    pages_of,
)
from ivl.server.settings import ServerSettings

Role = Literal["system", "user", "assistant"]
MAX_FETCHING = 4
"""Addresses of one request that are fetched at a time."""
CompileGrammar = Callable[[GrammarCompiler], Grammar | None]


@dataclass(frozen=True, slots=True)
class PictureSource:
    """A data URL, an address, or base64 alone; `max_tiles`: a limit of its own, `whole`: as many
    tiles as the model is made for, and no share."""

    url: str = ""
    base64: str = ""
    max_tiles: int | None = None
    whole: bool = False


@dataclass(slots=True)
class Turn:
    """A message: texts and pictures in their order."""

    role: Role
    parts: list[str | PictureSource] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an API asks for, apart from how its answer is written down."""

    turns: Sequence[Turn]
    options: GenerationOptions
    max_tiles: int | None = None
    context: int | None = None
    num_logprobs: int | None = None
    grammar: CompileGrammar | None = None


async def prepare(
    asked: Asked, model: ServedModel, preparation: Preparation, settings: ServerSettings
) -> EngineRequest:
    """Fetches, decodes and cuts the pictures and tokenizes the text. Errors as of
    `EngineRequest.chat`, and RequestError for pictures that cannot be had."""
    if len(asked.turns) > settings.max_messages:
        raise ApiError(400, f"A request has at most {settings.max_messages} messages.")
    sources = [part for turn in asked.turns for part in turn.parts if not isinstance(part, str)]
    check_count(len(sources), settings)
    for source in sources:
        if source.url:
            check_url(source.url, settings)
    fetched = await _fetch({source.url for source in sources if is_remote(source.url)})
    return await preparation.run(_prepare, asked, model, settings, fetched)


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
) -> EngineRequest:
    # A form that cannot be had is told before any image is decoded.
    grammar = asked.grammar(model.engine.grammars) if asked.grammar is not None else None
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
        check_count(len(pictures), settings)
        turns.append((turn, parts))
    messages = _messages(turns, len(pictures))
    return EngineRequest.chat(
        model.engine,
        messages,
        [picture for picture, _ in pictures],
        max_tiles=_limits(asked, [source for _, source in pictures], model),
        max_pixels=settings.max_image_pixels,
        context=asked.context,
        options=asked.options,
        num_logprobs=asked.num_logprobs,
        grammar=grammar,
    )


def _bytes_of(source: PictureSource, fetched: dict[str, bytes]) -> bytes:
    if source.base64:
        return decode_base64(source.base64, "An image")
    if source.url in fetched:
        return fetched[source.url]
    return decode_base64(source.url, "An image's address")


def _limits(asked: Asked, sources: list[PictureSource], model: ServedModel) -> list[int] | None:
    """The most tiles of each picture: its own limit, or its share of the request's."""
    if not sources:
        return None
    whole = asked.max_tiles or model.engine.config.max_tiles
    shares = share_budget(len(sources), whole)
    return [
        source.max_tiles or (whole if source.whole else share)
        for source, share in zip(sources, shares, strict=True)
    ]


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
        parts: list[Part] = []
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
