"""The Python API: `ivl.load`, and the model that it returns.

model = ivl.load("demo")
model.ask("receipt.png", "What is the total?").text
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ivl.config import ModelConfig
from ivl.documents.job import model_facts
from ivl.documents.reading import read
from ivl.engine.answer import Answer, joined
from ivl.engine.conversation import Conversation, Generation
from ivl.engine.engine import Engine
from ivl.engine.options import DEFAULT_DRAFT_TOKENS, GenerationKeywords, GenerationOptions, Schema
from ivl.engine.prompt_builder import (
    LIMIT_OPTION,
    Images,
    MaxTiles,
    as_list,
    check_order,
    split_pages,
)
from ivl.errors import RequestError
from ivl.footprint.workload import DEFAULT_VISION_BATCH
from ivl.json_values import JsonObject
from ivl.loading import LoadOptions, load_engine
from ivl.model.build import Progress
from ivl.pages.pdf import is_pdf as is_pdf
from ivl.pages.reader import open_pages
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.prompt.template import IMAGE, Message, user_message

IMAGES_FIRST = 'The images come first: model.ask("receipt.png", "What is the total?").'


def load(
    model: str | os.PathLike[str] = "demo",
    *,
    mmproj: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    context: int | None = None,
    vision_batch: int = DEFAULT_VISION_BATCH,
    vision: str = "auto",
    kv: str = "auto",
    threads: int | None = None,
    draft: str | os.PathLike[str] | None = None,
    draft_tokens: int = DEFAULT_DRAFT_TOKENS,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    gpu_layers: int | None = None,
    vision_offload: bool = False,
) -> Model:
    """Loads a model that answers. All options are those of `LoadOptions`, which says what they
    mean. CapacityError, before anything is loaded, when the memory is too small."""
    options = LoadOptions(
        model=model,
        mmproj=mmproj,
        revision=revision,
        offline=offline,
        device=device,
        gpu_layers=gpu_layers,
        vision_offload=vision_offload,
        dtype=dtype,
        context=context,
        vision_batch=vision_batch,
        vision=vision,
        kv=kv,
        threads=threads,
        draft=draft,
        draft_tokens=draft_tokens,
    )
    return Model(load_engine(options, progress), options)


class Model:
    """A model that answers. Whoever wants an answer computes it, with those of all others that are
    being written; to answer many over a network, use the server."""

    def __init__(self, engine: Engine, options: LoadOptions | None = None) -> None:
        """`options`: those that it was loaded with."""
        self.engine = engine
        self._options = options

    @property
    def facts(self) -> JsonObject | None:
        """What tells its answers from those of another model, for journals; None where it is not
        known what it was loaded from."""
        if self._options is None:
            return None
        options = self._options
        return model_facts(
            options.model,
            mmproj=options.mmproj,
            revision=options.revision,
            offline=True,
            dtype=options.dtype_name,
            kv=options.kv,
            vision=options.vision,
            context=options.context,
        )

    @property
    def config(self) -> ModelConfig:
        return self.engine.config

    def ask(
        self,
        images: Images,
        question: str,
        *,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        system: str | None = None,
        schema: Schema = None,
        logprobs: int | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Answer:
        """One question about one image or a list of them (`None` or `[]`: about none).

        An image is a path, the bytes of a file, an open file, a NumPy array (`image_of_array` says
        of what shape), a PIL image (the picture that it shows now, its current frame), or a `Page`.
        Files are images or PDFs; one with several pages, or an animation, is asked about with all
        of them. `max_tiles`: a budget that all pages of all images share, or a list with one limit
        for each of them. Images of more than `max_pixels` are refused, and pages of a PDF drawn
        with no more (`PdfFile` says with how many). `schema`: the JSON that the answer must be, a
        JSON schema or a pydantic model; `Answer.data` has it. `logprobs`: of how many tokens beside
        each of the answer's `Answer.logprobs` has the probability. `options`: see
        `GenerationOptions`.
        """
        check_order(question, images, IMAGES_FIRST)
        chosen = GenerationOptions.of(options)
        generation = self.conversation(system).ask(
            question,
            images,
            max_tiles=max_tiles,
            max_pixels=max_pixels,
            options=chosen,
            schema=schema,
            logprobs=logprobs,
        )
        return generation.result()

    def stream(
        self,
        messages: str | Message | Mapping[str, object] | Sequence[Message | Mapping[str, object]],
        *,
        images: Images = (),
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        system: str | None = None,
        schema: Schema = None,
        logprobs: int | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Generation:
        """The answer to a question, or to a whole history, piece by piece.

        `messages` is a question, or messages: `Message`, or `{"role": ..., "content": ...}`, whose
        content is a text, or a list of texts and `ivl.IMAGE` slots. The images, of which one with
        several pages is shown with all of them, belong to the last message, unless messages have
        slots of their own for them. RequestError for messages that hold anything else.
        The result is iterated over for pieces of text; then its `answer` has the rest.
        """
        chosen = GenerationOptions.of(options)
        if isinstance(messages, str):
            return self.conversation(system).ask(
                messages,
                images,
                max_tiles=max_tiles,
                max_pixels=max_pixels,
                options=chosen,
                schema=schema,
                logprobs=logprobs,
            )
        split = split_pages(images, max_pixels=max_pixels)
        history = as_messages(messages, [len(pages) for pages in split])
        return self.conversation(system).resume(
            history,
            [page for pages in split for page in pages],
            max_tiles=max_tiles,
            max_pixels=max_pixels,
            options=chosen,
            schema=schema,
            logprobs=logprobs,
        )

    def read(
        self,
        image: Images,
        *,
        max_tiles: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        system: str | None = None,
        schema: Schema = None,
        logprobs: int | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Answer:
        """All the text of an image, or of a list of them.

        Several pages are read one after the other, with a blank line between their texts; `tokens`
        and timings are those of all, and `finish_reason` is `length` if any page was cut off.
        """
        pages = [
            page
            for one in as_list(image)
            for page in open_pages(one, max_pixels=max_pixels, limit_option=LIMIT_OPTION)
        ]
        answers = []
        for page in read(
            pages,
            model=self,
            max_tiles=max_tiles,
            max_pixels=max_pixels,
            system=system,
            schema=schema,
            logprobs=logprobs,
            retry=False,
            skip_blank=False,
            rotate=False,
            **options,
        ):
            if page.error is not None:
                raise page.error
            assert page.answer is not None
            answers.append(page.answer)
        if not answers:
            raise RequestError("There is no image to read.", "Give one, or a list of them.")
        return joined(answers)

    def conversation(self, system: str | None = None) -> Conversation:
        """Several turns that share the cache; see `Conversation.ask`."""
        return Conversation(self.engine, system)

    @torch.inference_mode()
    def encode_tiles(self, tiles_u8: np.ndarray | Tensor) -> Tensor:
        """uint8 (n, tile_px, tile_px, 3) -> features (n, tokens_per_tile, hidden)."""
        if not isinstance(tiles_u8, np.ndarray | Tensor):
            raise RequestError(
                f"The tiles are a {type(tiles_u8).__name__}, and must be an array of bytes."
            )
        tiles = torch.as_tensor(tiles_u8)
        return self.engine.model.encode_tiles(tiles, self.engine.vision_batch)

    @torch.inference_mode()
    def logits(self, input_ids: Tensor | Sequence[int], features: Tensor | None = None) -> Tensor:
        """ids (tokens,), features (n, tokens_per_tile, hidden) -> float32 (tokens, vocab).

        The features stand in for the ids of `<IMG_CONTEXT>`. RequestError for ids that the model
        does not have.
        """
        ids = torch.as_tensor(input_ids, device=self.engine.model.device).long().flatten()
        most = self.config.decoder.vocab_size
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < most:
            raise RequestError(
                f"There are ids from {int(ids.min())} to {int(ids.max())}.",
                f"Those of this model are 0 to {most - 1}.",
            )
        places = torch.zeros_like(ids, dtype=torch.bool)
        if features is not None:
            places = ids == self.engine.tokenizer.control("<IMG_CONTEXT>")
        return self.engine.model.logits(ids, places, features)


def as_messages(
    messages: Message | Mapping[str, object] | Sequence[Message | Mapping[str, object]],
    pages_per_image: Sequence[int] = (),
) -> list[Message]:
    """Messages from dicts, with one slot for every page of the images.

    A slot becomes as many as its image has pages; where no message has slots, they go to the front
    of the last one. RequestError for what is no message, and for keys that would be lost.
    """
    if not isinstance(messages, Message | Mapping | Sequence):
        raise RequestError(
            f"The messages are a {type(messages).__name__}.",
            'Give a question, or a list of {"role": "user", "content": "..."}.',
        )
    given = [messages] if isinstance(messages, Message | Mapping) else list(messages)
    history = [_as_message(message) for message in given]
    num_slots = sum(message.num_images for message in history)
    if num_slots == len(pages_per_image):
        counts = iter(pages_per_image)
        return [_with_pages(message, counts) for message in history]
    if history and not num_slots and isinstance(history[-1].content, str):
        history[-1] = user_message(history[-1].content, sum(pages_per_image))
    return history


def _as_message(given: Any) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        raise RequestError(
            f"A message is a {type(given).__name__}.",
            'Give `ivl.Message`, or {"role": "user", "content": "..."}.',
        )
    for key in given:
        if key not in ("role", "content"):
            raise RequestError(
                f"A message has the key {key!r}, which would be lost.",
                "Images are given beside the messages: stream(messages, images=[...])."
                if str(key).startswith(("image", "video", "picture"))
                else "A message has a role and a content.",
            )
    if "role" not in given or "content" not in given:
        raise RequestError(f"A message needs a role and a content: {dict(given)!r}.")
    content = given["content"]
    if isinstance(content, list | tuple):
        content = tuple(_as_part(part) for part in content)
    return Message(given["role"], content)


def _as_part(part: Any) -> Any:
    """A part of a content, in our form or in that of OpenAI and transformers."""
    if not isinstance(part, Mapping):
        return part
    if part.get("type") in ("text", "input_text") and part.keys() <= {"type", "text"}:
        return part.get("text")
    if part.keys() == {"type"} and part["type"] == "image":
        return IMAGE
    raise RequestError(
        f"A message holds a part of the type {part.get('type')!r} with a content of its own.",
        'Put `ivl.IMAGE` (or {"type": "image"}) in its place, and give the image beside the '
        "messages: stream(messages, images=[...]).",
    )


def _with_pages(message: Message, counts: Iterator[int]) -> Message:
    parts: list[Any] = []
    for part in message.parts:
        if isinstance(part, str):
            parts.append(part)
        else:
            parts += [IMAGE, *(["\n", IMAGE] * (next(counts) - 1))]
    return Message(message.role, parts) if message.num_images else message
