"""Loading a model: what is asked for, what is made of it on this machine, and the engine."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace

import torch

from ivl.checkpoint.hub import locate_pair
from ivl.config import ModelConfig
from ivl.devices import choose_devices, place_model
from ivl.engine.engine import Engine, check_at_least_one
from ivl.engine.options import DEFAULT_DRAFT_TOKENS, LOOKUP
from ivl.engine.speculation import Speculation, check_draft
from ivl.errors import ConfigError
from ivl.footprint.workload import DEFAULT_VISION_BATCH, resolve_context
from ivl.kernels.threads import use_threads
from ivl.kv import KV_TYPES, KVType
from ivl.model.assembly import Arrangement, assemble
from ivl.model.build import Progress
from ivl.model.cpu_vision import CHOICES, VisionChoice
from ivl.model.internvl import InternVL
from ivl.model.source import ModelSource, open_source
from ivl.prompt.template import get_template
from ivl.prompt.tokenizer import Tokenizer

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which model, and how it is loaded. ConfigError, when made, for values of another type.

    model: `demo`, a size (`1b` ... `78b`), a directory, a GGUF file, or a hub id `owner/name`, with
        `:TYPE` or `:FILE` behind it to choose among GGUF files there.
    mmproj: the projector's GGUF file, where it is not the only one beside the text model's; for a
        hub's model also a name or type in its repository.
    revision: branch, tag or commit of a hub's model. offline: only what has been downloaded.
    device: see `choose_devices`. gpu_layers, vision_offload: see `place_model`.
    dtype: `bfloat16`, `float16`, `float32`; by default what the device computes well in.
    context: tokens of question and answer together. vision_batch: tiles encoded at once.
    vision: arithmetic of the vision tower, see `choose_vision`. kv: see `choose_kv`.
    threads: processor threads, for the whole program; by default one for each core that it may use.
    draft: a smaller model of the same vocabulary, which guesses `draft_tokens` ahead, or `lookup`.
    """

    model: str | os.PathLike[str] = "demo"
    mmproj: str | os.PathLike[str] | None = None
    revision: str | None = None
    offline: bool = False
    device: str | torch.device | None = None
    gpu_layers: int | None = None
    vision_offload: bool = False
    dtype: str | torch.dtype | None = None
    context: int | None = None
    vision_batch: int = DEFAULT_VISION_BATCH
    vision: str = "auto"
    kv: str = "auto"
    threads: int | None = None
    draft: str | os.PathLike[str] | None = None
    draft_tokens: int = DEFAULT_DRAFT_TOKENS

    def __post_init__(self) -> None:
        hints = {
            "model": 'Give "demo", a size such as "4b", a directory or a hub id.',
            "mmproj": "Give the path of the projector's GGUF file.",
        }
        for name, hint in hints.items():
            given = getattr(self, name)
            if not isinstance(given, str | os.PathLike) and (name == "model" or given is not None):
                kind = type(given).__name__
                raise ConfigError(f"{name} is a {kind}, not a name or a path.", hint)
        for name in ("context", "vision_batch", "draft_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{name} is {value!r}, and must be a whole number.")
        for name, value in (("device", self.device_name), ("dtype", self.dtype_name)):
            if value is not None and not isinstance(value, str):
                kind = type(value).__name__
                raise ConfigError(f"{name} is a {kind}, not a name.", "Such as cpu.")

    @property
    def device_name(self) -> str | None:
        """The device by the name that it has here, which torch's objects have too."""
        return str(self.device) if isinstance(self.device, torch.device) else self.device

    @property
    def dtype_name(self) -> str | None:
        """The type by the name that it has here."""
        is_torchs = isinstance(self.dtype, torch.dtype)
        return str(self.dtype).removeprefix("torch.") if is_torchs else self.dtype  # type: ignore[return-value]

    def of_draft(self) -> LoadOptions:
        """How the model that guesses is loaded: as this one, but for what is this one's alone."""
        assert self.draft is not None
        own = {"mmproj", "revision", "gpu_layers", "vision_offload", "draft", "draft_tokens"}
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        return LoadOptions(**{**kept, "model": self.draft})


def load_engine(options: LoadOptions, progress: Progress | None = None) -> Engine:
    """The model with its tokenizer, ready to answer.

    `progress` is called with (bytes done, bytes in all). CapacityError, before anything is loaded,
    when the memory is too small.
    """
    use_threads(options.threads)
    found = locate_pair(
        options.model,
        options.mmproj,
        revision=options.revision,
        offline=options.offline,
        show_progress=bool(progress),
    )
    source = open_source(found.path, found.mmproj)
    config = source.config
    options = replace(options, context=resolve_context(options.context, config))
    check_at_least_one("vision_batch", options.vision_batch)
    how = choices(source, options)
    # Both are checked before the weights are read, which can take minutes.
    get_template(config.template)
    tokenizer = source.tokenizer()
    speculation = _speculation(options, tokenizer, config, progress)
    return Engine(
        assemble(source, place(source, options, how), progress),
        tokenizer,
        context=options.context,
        vision_batch=options.vision_batch,
        speculation=speculation,
    )


def load_network(
    source: ModelSource, options: LoadOptions, progress: Progress | None = None
) -> InternVL:
    """The network alone, which needs no tokenizer; errors as of `load_engine`."""
    return assemble(source, place(source, options, choices(source, options)), progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What was left open, chosen for this machine; all but where what goes."""

    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    kv: KVType
    vision: VisionChoice


def choices(source: ModelSource, options: LoadOptions) -> Choices:
    """ConfigError for what this machine or this model cannot do."""
    devices = choose_devices(
        options.device_name,
        gpu_layers=options.gpu_layers,
        vision_offload=options.vision_offload,
    )
    dtype = choose_dtype(options.dtype_name, devices[0], is_quantized=source.is_quantized)
    return Choices(
        devices=devices,
        dtype=dtype,
        kv=choose_kv(options.kv, dtype, is_quantized=source.is_quantized),
        vision=choose_vision(options.vision, options.dtype_name),
    )


def place(source: ModelSource, options: LoadOptions, how: Choices) -> Arrangement:
    """With a place for every part; CapacityError when there is none."""
    context = resolve_context(options.context, source.config)
    device = place_model(
        source,
        how.devices,
        context=context,
        vision_batch=options.vision_batch,
        kv=how.kv,
        dtype=how.dtype,
        gpu_layers=options.gpu_layers,
        vision_offload=options.vision_offload,
        float16_tower=how.vision in ("auto", "float16"),
    )
    return Arrangement(
        device=device, dtype=how.dtype, context=context, kv=how.kv, vision=how.vision
    )


def _speculation(
    options: LoadOptions, tokenizer: Tokenizer, config: ModelConfig, progress: Progress | None
) -> Speculation | None:
    """The way to guess for a model of this tokenizer and configuration; ConfigError where the draft
    model cannot."""
    if options.draft is None:
        return None
    if options.draft == LOOKUP:
        return Speculation(None, options.draft_tokens)
    guessing = load_engine(options.of_draft(), progress)
    check_draft(tokenizer, config, guessing)
    return Speculation(guessing, options.draft_tokens)


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
