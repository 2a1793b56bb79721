"""Loading a model: what is asked for, what is made of it on this machine, and the engine."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from ivl.checkpoint.files import tensors_of
from ivl.checkpoint.hub import locate_pair
from ivl.config import ModelConfig
from ivl.engine.engine import Engine, EngineLimits, check_at_least_one
from ivl.engine.options import DEFAULT_DRAFT_TOKENS, LOOKUP
from ivl.engine.speculation import Speculation, check_draft
from ivl.errors import CapacityError, ConfigError
from ivl.footprint.placement import GIB, Device, Devices, Fit, Slot, fit, require_room
from ivl.footprint.workload import DEFAULT_VISION_BATCH, loaded_workload, resolve_context
from ivl.host import available_memory_bytes, has_float16_products, total_memory_bytes
from ivl.kernels.cpu import use_threads
from ivl.kv import KV_TYPES, KVType, kv_bytes_per_layer_token
from ivl.model.arithmetic import CHOICES, VisionChoice
from ivl.model.build import Progress
from ivl.model.device_map import DeviceMap, map_of
from ivl.model.internvl import InternVL
from ivl.model.source import Arrangement, ModelSource, assemble, open_source
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


KV_SHARE = 0.5
"""Of the memory that is free once the weights are there, what a cache for many may take; the rest
is for activations, images that are being decoded, and others."""


def tokens_that_fit(engine: Engine, limits: EngineLimits) -> int | None:
    """Tokens whose keys and values find room in the free memory of every device that has layers,
    beside the vision cache; None where nobody says how much is free."""
    layer_bytes = _cache_layer_bytes(engine)
    rooms = [
        (free * KV_SHARE - limits.vision_cache_bytes) / (layer_bytes * count)
        for device, count in Counter(engine.model.decoder.layer_devices).items()
        if (free := free_bytes(device)) is not None
    ]
    return int(min(rooms)) if rooms else None


def cache_token_bytes(engine: Engine) -> float:
    """What one more token takes in the cache, on all devices together."""
    return _cache_layer_bytes(engine) * len(engine.model.decoder.layer_devices)


def _cache_layer_bytes(engine: Engine) -> float:
    """Of a token in a layer; what a draft model keeps is shared out among the layers."""
    layer_bytes: float = kv_bytes_per_layer_token(engine.config.decoder, engine.model.kv)
    if engine.speculation is not None and (draft := engine.speculation.draft) is not None:
        kept = kv_bytes_per_layer_token(draft.config.decoder, draft.model.kv)
        num_layers = len(engine.model.decoder.layer_devices)
        layer_bytes += kept * draft.config.decoder.num_layers / num_layers
    return layer_bytes


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
    if kv in KV_TYPES:
        return kv
    raise ConfigError(f"There is no kv {kv!r}.", f"Known: auto, {', '.join(KV_TYPES)}.")


def choose_vision(vision: str, dtype: str | None) -> VisionChoice:
    """The arithmetic of the vision tower: `torch` (in the model's dtype), `float16` or
    `bfloat16` (on a CPU), `fp8` (on a GPU), `int8` (the fastest, and less accurate), or `auto`: the
    fastest here of those that are no less exact than the model's dtype.

    A dtype that was asked for is what `auto` computes in. ConfigError for anything else.
    """
    for choice in CHOICES:
        if choice == vision:
            return "torch" if choice == "auto" and dtype is not None else choice
    raise ConfigError(f"There is no vision {vision!r}.", f"Known: {', '.join(CHOICES)}.")


def choose_device(device: str | None) -> torch.device:
    """The device to run on; ConfigError when the one asked for is not there."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"There is no device {device!r}.", "Known: cpu, cuda, cuda:1, mps, and cuda:0,cuda:1."
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(chosen.type, False):
        raise ConfigError(
            f"The device {device!r} is not available on this machine.",
            '`device="cpu"` always is.',
        )
    return chosen


def choose_devices(
    device: str | None, *, gpu_layers: int | None, vision_offload: bool
) -> tuple[torch.device, ...]:
    """`cpu`, `cuda`, `cuda:1`, `mps`; or several GPUs, `cuda:0,cuda:1`, that share a model. None:
    the first of cuda, mps, cpu that is there.

    ConfigError for devices that cannot, and for choices that mean nothing on them.
    """
    names = [None] if device is None else [name.strip() for name in device.split(",")]
    chosen: list[torch.device] = [choose_device(name) for name in names]
    if len(chosen) > 1:
        numbered = [torch.device(d.type, d.index or 0) for d in chosen]
        if any(d.type != "cuda" for d in chosen):
            raise ConfigError(
                f"Only GPUs can share a model, not {device}.",
                "Layers that do not fit on them run on the processor automatically.",
            )
        if len(set(numbered)) < len(numbered):
            raise ConfigError(f"{device} names a device twice.", "Name each of them once.")
        chosen = numbered
    choices = {"gpu_layers": gpu_layers is not None, "vision_offload": vision_offload}
    for option, asked in choices.items():
        if asked and chosen[0].type != "cuda":
            raise ConfigError(
                f"{option} is for models on a GPU, and this one will run on {chosen[0].type}.",
                'Leave it out, or name a GPU with `device="cuda"`.',
            )
    if gpu_layers is not None and gpu_layers < 0:
        raise ConfigError(f"gpu_layers is {gpu_layers}; it is a number of layers.")
    return tuple(chosen)


def place_model(
    source: ModelSource,
    devices: Sequence[torch.device],
    *,
    context: int,
    vision_batch: int,
    kv: KVType,
    dtype: torch.dtype,
    gpu_layers: int | None = None,
    vision_offload: bool = False,
    float16_tower: bool = False,
) -> DeviceMap:
    """What goes where, as `ivl plan` places it in the memory that is free now.

    dtype: what is computed in, which weights that are not quantized are kept in. gpu_layers: at
    most so many of the decoder's layers on GPUs; the first ones are then on the processor, as are
    those that find no room. vision_offload: the tower stays in main memory and is streamed to a
    GPU. float16_tower: it may be computed in float16 on a processor that has such products.
    CapacityError when it does not fit.
    """
    num_layers = source.config.decoder.num_layers
    here = devices_here(devices, float16_tower=float16_tower and has_float16_products())
    if not here.gpus and here.host is None:  # nobody says how much memory there is
        return DeviceMap.whole(devices[0], num_layers)
    found = fit_of_source(
        source, here, context=context, vision_batch=vision_batch, kv=kv, dtype=dtype,
        gpu_layers=gpu_layers, vision_offload=vision_offload,
    )  # fmt: skip
    if devices[0].type != "cuda":
        require_room(found, here, context, itemsize=dtype.itemsize)
        return DeviceMap.whole(devices[0], num_layers)
    if not found.placement.fits:
        raise CapacityError(
            f"{found.placement.missing_bytes / GIB:.1f} GiB are missing for the model on "
            f"{', '.join(map(str, devices))} and in main memory.",
            f"`ivl plan {shlex.quote(str(source.path))}` says what would fit.",
        )
    return map_of(found.placement, devices, num_layers, vision_offload=vision_offload)


def fit_of_source(
    source: ModelSource, devices: Devices, *, context: int, vision_batch: int, kv: KVType,
    dtype: torch.dtype, gpu_layers: int | None = None, vision_offload: bool = False,
) -> Fit:  # fmt: skip
    """A model with a page before it, on devices; see `place_model`."""
    # Matrices of GGUF files are kept on a processor as they are.
    stays = source.pair is not None and not devices.gpus
    return fit(
        source.config,
        tensors_of(source.path, source.config, source.pair),
        loaded_workload(source.config, context=context, kv=kv, vision_batch=vision_batch),
        devices,
        itemsize=None if stays else dtype.itemsize,
        vision_offload=vision_offload,
        gpu_layers=gpu_layers,
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device now; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes()


def devices_here(devices: Sequence[torch.device], *, float16_tower: bool = False) -> Devices:
    """The GPUs among these, as their drivers report them, and main memory, where the system says
    how much there is."""
    host, free = None, available_memory_bytes()
    if free is not None:
        total = max(free, total_memory_bytes() or 0)
        memory = Device(
            name="main memory", vendor="cpu", architecture="", form="host", memory_bytes=total,
            source="the system",
        )  # fmt: skip
        host = Slot(device=memory, used_bytes=total - free)
    gpus = tuple(_card(device) for device in devices if device.type == "cuda")
    if devices[0].type == "mps" and host is not None:
        chip = replace(host.device, name="mps", vendor="apple", form="unified")
        gpus = (replace(host, device=chip),)
    return Devices(gpus=gpus, host=host, float16_tower=float16_tower)


def _card(device: torch.device) -> Slot:
    free, total = torch.cuda.mem_get_info(device)
    known = Device(
        name=f"{torch.cuda.get_device_name(device)} {device}", vendor="nvidia",
        architecture="unknown", form="server", memory_bytes=total, source="the driver",
    )  # fmt: skip
    return Slot(device=known, used_bytes=total - free)
