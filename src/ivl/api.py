"""The Python API: `ivl.load`, and the model that it returns.

model = ivl.load("demo")
model.ask("receipt.png", "What is the total?").text
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivl.checkpoint.locate import locate_pair
from ivl.config import ModelConfig
from ivl.devices import choose_devices, free_bytes, place_model
from ivl.documents.reading import READ_QUESTION
from ivl.engine.answer import Answer
from ivl.engine.engine import (
    DEFAULT_VISION_BATCH,
    Conversation,
    Engine,
    Generation,
    check_at_least_one,
    resolve_context,
)
from ivl.engine.options import DEFAULT_DRAFT_TOKENS, GenerationOptions
from ivl.engine.request import MaxTiles
from ivl.engine.speculation import LOOKUP, Speculation, check_draft
from ivl.errors import ConfigError, RequestError
from ivl.kernels.threads import use_threads
from ivl.model.build import Progress
from ivl.model.cpu_decoder import use_fused_layers
from ivl.model.cpu_vision import CHOICES, VisionChoice, use_arithmetic
from ivl.model.devices import DeviceMap
from ivl.model.internvl import InternVL
from ivl.model.source import ModelSource, open_source
from ivl.planner.kv_cache import KV_TYPES, KVType
from ivl.planner.memory import check_fits
from ivl.prompt.template import Message, get_template, user_message
from ivl.prompt.tokenizer import Tokenizer

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def load(
    model: str | os.PathLike[str] = "demo",
    *,
    mmproj: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
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
        images: Any,
        question: str,
        *,
        max_tiles: MaxTiles = None,
        system: str | None = None,
        **options: Any,
    ) -> Answer:
        """One question about one image or a list of them (`None` or `[]`: about none).

        An image is a path, bytes, an open file or a PIL image. `max_tiles`: a budget that all
        images share, or a list with one limit each. `options`: see `GenerationOptions`.
        """
        generation = self.conversation(system).ask(
            question,
            as_list(images),
            max_tiles=max_tiles,
            options=GenerationOptions.of(options),
        )
        return generation.result()

    def stream(
        self,
        messages: str | Sequence[Message | Mapping[str, str]],
        *,
        images: Sequence[Any] = (),
        max_tiles: MaxTiles = None,
        system: str | None = None,
        **options: Any,
    ) -> Generation:
        """The answer to a question, or to a whole history, piece by piece.

        `messages` is a question, or messages: `Message`, or `{"role": ..., "content": ...}`. The
        images belong to the last message, unless messages have slots of their own for them.
        The result is iterated over for pieces of text; then its `answer` has the rest.
        """
        chosen = GenerationOptions.of(options)
        if isinstance(messages, str):
            talk = self.conversation(system)
            return talk.ask(messages, as_list(images), max_tiles=max_tiles, options=chosen)
        history = as_messages(messages, len(images))
        return self.conversation(system).resume(
            history, as_list(images), max_tiles=max_tiles, options=chosen
        )

    def read(self, image: Any, *, max_tiles: MaxTiles = None, **options: Any) -> Answer:
        """All the text of an image."""
        return self.ask(image, READ_QUESTION, max_tiles=max_tiles, **options)

    def conversation(self, system: str | None = None) -> Conversation:
        """Several turns that share the cache; see `Conversation.ask`."""
        return self.engine.conversation(system)

    @torch.inference_mode()
    def encode_tiles(self, tiles_u8: np.ndarray | Tensor) -> Tensor:
        """uint8 (n, tile_px, tile_px, 3) -> features (n, tokens_per_tile, hidden)."""
        tiles = torch.as_tensor(tiles_u8)
        return self.engine.model.encode_tiles(tiles, self.engine.vision_batch)

    @torch.inference_mode()
    def logits(self, input_ids: Any, features: Tensor | None = None) -> Tensor:
        """ids (tokens,), features (n, tokens_per_tile, hidden) -> float32 (tokens, vocab).

        The features stand in for the ids of `<IMG_CONTEXT>`.
        """
        ids = torch.as_tensor(input_ids, device=self.engine.model.device).long().flatten()
        places = torch.zeros_like(ids, dtype=torch.bool)
        if features is not None:
            places = ids == self.engine.tokenizer.control("<IMG_CONTEXT>")
        return self.engine.model.logits(ids, places, features)


def as_list(images: Any) -> list[Any]:
    """One image, several, or none, as a list."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def as_messages(messages: Sequence[Message | Mapping[str, str]], num_images: int) -> list[Message]:
    """Messages from dicts; images without a slot go to the front of the last message."""
    history = []
    for message in messages:
        if not isinstance(message, Message):
            try:
                message = Message(message["role"], message["content"])  # type: ignore[arg-type]
            except (KeyError, TypeError):
                raise RequestError(f"A message needs a role and a content: {message!r}.") from None
        history.append(message)
    slots = sum(not isinstance(part, str) for message in history for part in message.parts)
    if history and num_images and not slots and isinstance(history[-1].content, str):
        history[-1] = user_message(history[-1].content, num_images)
    return history


def choose_dtype(
    dtype: str | None, device: torch.device, *, is_quantized: bool = False
) -> torch.dtype:
    """The type to compute in: bfloat16 where the hardware has it, for that is how the models were
    trained; float16 on Apple's GPUs, float32 on processors without bfloat16 instructions, and
    where matrices stay quantized on a processor, whose products are float32 in any case."""
    if dtype is not None:
        if dtype not in DTYPES:
            raise ConfigError(f"There is no dtype {dtype!r}.", f"Known: {', '.join(DTYPES)}.")
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
