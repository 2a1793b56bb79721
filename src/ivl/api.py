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

from ivl.checkpoint.locate import locate_pair
from ivl.config import ModelConfig
from ivl.devices import choose_devices, free_bytes, place_model
from ivl.documents.reading import read_pages
from ivl.engine.answer import Answer, joined
from ivl.engine.engine import (
    DEFAULT_VISION_BATCH,
    Conversation,
    Engine,
    Generation,
    check_at_least_one,
    resolve_context,
)
from ivl.engine.options import DEFAULT_DRAFT_TOKENS, GenerationKeywords, GenerationOptions
from ivl.engine.request import (
    LIMIT_OPTION,
    Images,
    MaxTiles,
    as_list,
    check_order,
    split_pages,
)
from ivl.engine.speculation import LOOKUP, Speculation, check_draft
from ivl.errors import ConfigError, RequestError
from ivl.kernels.threads import use_threads
from ivl.model.build import Progress
from ivl.model.cpu_decoder import use_fused_layers
from ivl.model.cpu_vision import CHOICES, VisionChoice, use_arithmetic
from ivl.model.devices import DeviceMap
from ivl.model.internvl import InternVL
from ivl.model.source import ModelSource, open_source
from ivl.pages.reader import open_pages
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.planner.kv_cache import KV_TYPES, KVType
from ivl.planner.memory import check_fits
from ivl.prompt.template import IMAGE, Message, get_template, user_message
from ivl.prompt.tokenizer import Tokenizer

IMAGES_FIRST = 'The images come first: model.ask("receipt.png", "What is the total?").'
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


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
    """Loads a model: `demo`, a size (`1b` ... `78b`), a directory, a GGUF file, or a hub id
    `owner/name`, with `:TYPE` or `:FILE` behind it to choose among GGUF files there.

    mmproj: the projector's GGUF file, where it is not the only one beside the text model's; for a
    hub's model also a name or type in its repository.
    device: see `choose_devices`. gpu_layers, vision_offload: see `place_model`.
    dtype: `bfloat16`, `float16`, `float32`; by default what the device computes well in.
    context: tokens of question and answer together. vision_batch: tiles encoded at once.
    vision: arithmetic of the vision tower, see `choose_vision`. kv: see `choose_kv`.
    threads: processor threads, for the whole program; by default one for each core that it may use.
    draft: a smaller model of the same vocabulary, which guesses `draft_tokens` ahead, or `lookup`.
    Raises CapacityError, before anything is loaded, when the memory is too small.
    """
    device, dtype = _names(device, dtype)
    _check_path("model", model, 'Give "demo", a size such as "4b", a directory or a hub id.')
    if mmproj is not None:
        _check_path("mmproj", mmproj, "Give the path of the projector's GGUF file.")
    _check_whole(context=context, vision_batch=vision_batch, draft_tokens=draft_tokens)
    use_threads(threads)
    found = locate_pair(
        model, mmproj, revision=revision, offline=offline, show_progress=bool(progress)
    )
    source = open_source(found.path, found.mmproj)
    config = source.config
    named = choose_devices(device, gpu_layers=gpu_layers, vision_offload=vision_offload)
    kind = choose_dtype(dtype, named[0], is_quantized=source.is_quantized)
    context = resolve_context(context, config)
    check_at_least_one("vision_batch", vision_batch)
    arithmetic = choose_vision(vision, dtype)
    kept = choose_kv(kv, kind, is_quantized=source.is_quantized)
    # Both are checked before the weights are read, which can take minutes.
    get_template(config.template)
    tokenizer = source.tokenizer()
    speculation = load_speculation(
        draft, draft_tokens, tokenizer, config, device=device, dtype=dtype, context=context,
        vision_batch=vision_batch, vision=vision, kv=kv, threads=threads, offline=offline,
        progress=progress,
    )  # fmt: skip
    options: dict[str, Any] = {"context": context, "vision_batch": vision_batch}
    places = place_model(
        source, named, gpu_layers=gpu_layers, vision_offload=vision_offload, kv=kept, dtype=kind,
        **options,
    )  # fmt: skip
    network = load_network(source, device=places, dtype=kind, kv=kept, progress=progress, **options)
    use_arithmetic(network, arithmetic)
    return Model(Engine(network, tokenizer, speculation=speculation, **options))


def _names(device: object, dtype: object) -> tuple[str | None, str | None]:
    """A device and a type by the names that they have here, which torch's objects have too."""
    named = str(device) if isinstance(device, torch.device) else device
    kind = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    for name, value in (("device", named), ("dtype", kind)):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{name} is a {type(value).__name__}, not a name.", "Such as cpu.")
    return named, kind  # type: ignore[return-value]


def _check_path(name: str, given: object, hint: str) -> None:
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{name} is a {type(given).__name__}, not a name or a path.", hint)


def _check_whole(**numbers: object) -> None:
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{name} is {value!r}, and must be a whole number.")


def load_speculation(
    draft: str | os.PathLike[str] | None,
    draft_tokens: int,
    tokenizer: Tokenizer,
    config: ModelConfig,
    **options: Any,
) -> Speculation | None:
    """The way to guess for a model of this tokenizer and configuration; ConfigError where the draft
    model cannot. `options`: what it is loaded with, as of `load`."""
    if draft is None:
        return None
    if draft == LOOKUP:
        return Speculation(None, draft_tokens)
    guessing = load(draft, **options).engine
    check_draft(tokenizer, config, guessing)
    return Speculation(guessing, draft_tokens)


def load_network(
    source: ModelSource,
    *,
    device: DeviceMap | torch.device,
    dtype: torch.dtype,
    context: int,
    vision_batch: int = DEFAULT_VISION_BATCH,
    kv: KVType | None = None,
    progress: Progress | None = None,
) -> InternVL:
    """The network alone, which needs no tokenizer. CapacityError when the memory of the one device
    is too small; who makes a map of several has looked at theirs (`ivl.devices.spread`)."""
    kv = kv or choose_kv("auto", dtype, is_quantized=source.is_quantized)
    if not isinstance(device, DeviceMap):
        check_fits(
            source.config,
            free_bytes(device),
            itemsize=dtype.itemsize,
            context=context,
            vision_batch=vision_batch,
            kv=kv,
            stored_bytes=source.weights_bytes(dtype, device),
        )
    network = source.build(device=device, dtype=dtype, progress=progress)
    network.kv = kv
    use_fused_layers(network.decoder)
    network.decoder.use_graphs(context)
    return network


class Model:
    """A model that answers. One question at a time; for several users, use the server."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
        **options: Unpack[GenerationKeywords],
    ) -> Answer:
        """One question about one image or a list of them (`None` or `[]`: about none).

        An image is a path, the bytes of a file, an open file, a NumPy array (`image_of_array` says
        of what shape), a PIL image (the picture that it shows now, its current frame), or a `Page`.
        Files are images or PDFs; one with several pages, or an animation, is asked about with all
        of them. `max_tiles`: a budget that all pages of all images share, or a list with one limit
        for each of them. Images of more than `max_pixels` are refused, and pages of a PDF drawn
        with no more (`PdfFile` says with how many). `options`: see `GenerationOptions`.
        """
        check_order(question, images, IMAGES_FIRST)
        chosen = GenerationOptions.of(options)
        generation = self.conversation(system).ask(
            question, images, max_tiles=max_tiles, max_pixels=max_pixels, options=chosen
        )
        return generation.result()

    def stream(
        self,
        messages: str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]],
        *,
        images: Images = (),
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        system: str | None = None,
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
                messages, images, max_tiles=max_tiles, max_pixels=max_pixels, options=chosen
            )
        split = split_pages(images, max_pixels=max_pixels)
        history = as_messages(messages, [len(pages) for pages in split])
        return self.conversation(system).resume(
            history,
            [page for pages in split for page in pages],
            max_tiles=max_tiles,
            max_pixels=max_pixels,
            options=chosen,
        )

    def read(
        self,
        image: Images,
        *,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        system: str | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Answer:
        """All the text of an image, or of a list of them.

        Several pages are read one after the other, with a blank line between their texts; `tokens`
        and timings are those of all, and `finish_reason` is `length` if any page was cut off.
        """
        chosen = GenerationOptions.of(options)
        pages = [
            page
            for one in as_list(image)
            for page in open_pages(one, max_pixels=max_pixels, limit_option=LIMIT_OPTION)
        ]
        answers = []
        for reading in read_pages(
            self,
            pages,
            max_tiles=max_tiles,
            max_pixels=max_pixels,
            system=system,
            options=chosen,
        ):
            if reading.generation is None:
                assert reading.error is not None
                raise reading.error
            answers.append(reading.generation.result())
        if not answers:
            raise RequestError("There is no image to read.", "Give one, or a list of them.")
        return joined(answers)

    def conversation(self, system: str | None = None) -> Conversation:
        """Several turns that share the cache; see `Conversation.ask`."""
        return self.engine.conversation(system)

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
    def logits(self, input_ids: Any, features: Tensor | None = None) -> Tensor:
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
    messages: Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]],
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


def choose_dtype(
    dtype: str | None, device: torch.device, *, is_quantized: bool = False
) -> torch.dtype:
    """The type to compute in: bfloat16 where the hardware has it, for that is how the models were
    trained; float16 on Apple's GPUs, float32 on processors without bfloat16 instructions, and
    where matrices stay quantized on a processor, whose products are float32 in any case."""
    if dtype is not None:
        if dtype not in DTYPES:
            short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
            meant = f" Did you mean {short[dtype]!r}?" if dtype in short else ""
            raise ConfigError(
                f"There is no dtype {dtype!r}.{meant}", f"Known: {', '.join(DTYPES)}."
            )
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.float16
    if is_quantized:
        return torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def choose_kv(kv: str, dtype: torch.dtype, *, is_quantized: bool = False) -> KVType:
    """What keys and values are kept in: `32bit`, `16bit`, `8bit` (half the memory of 16, nearly as
    exact), or `auto`: 32 bits for a model that is float32 throughout, else 16.

    ConfigError for anything else.
    """
    if kv == "auto":
        return "32bit" if dtype == torch.float32 and not is_quantized else "16bit"
    for known in KV_TYPES:
        if known == kv:
            return known
    raise ConfigError(f"There is no kv {kv!r}.", f"Known: auto, {', '.join(KV_TYPES)}.")


def choose_vision(vision: str, dtype: str | None) -> VisionChoice:
    """The arithmetic of the vision tower: `torch` (in the model's dtype), `float16` (on a CPU),
    `fp8` (on a GPU), `int8` (the fastest, and less accurate), or `auto`: torch or float16,
    whichever is faster here.

    A dtype that was asked for is what `auto` computes in. ConfigError for anything else.
    """
    for choice in CHOICES:
        if choice == vision:
            return "torch" if choice == "auto" and dtype is not None else choice
    raise ConfigError(f"There is no vision {vision!r}.", f"Known: {', '.join(CHOICES)}.")
