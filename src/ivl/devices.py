"""Which devices a model is loaded to: all on one, or spread as `ivl plan` says."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import torch

from ivl.checkpoint.stored import stored_model
from ivl.errors import CapacityError, ConfigError
from ivl.model.devices import DeviceMap, map_of
from ivl.model.source import ModelSource
from ivl.planner.backends import BACKENDS
from ivl.planner.device_table import GIB, Device
from ivl.planner.devices import available_memory_bytes
from ivl.planner.kv_cache import KVType
from ivl.planner.machine import Machine, Slot, this_machine
from ivl.planner.plan import Setting, Subject, make_plan
from ivl.planner.workload import plan_workload


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
                f"A model is shared by GPUs only, not by {device}.",
                "Layers that find no room on them run on the processor without being told to.",
            )
        if len(set(numbered)) < len(numbered):
            raise ConfigError(f"{device} names a device twice.", "Name each of them once.")
        chosen = numbered
    choices = {"gpu_layers": gpu_layers is not None, "vision_offload": vision_offload}
    for option, asked in choices.items():
        if asked and chosen[0].type != "cuda":
            raise ConfigError(
                f"{option} is for models on a GPU, and this one is to run on {chosen[0].type}.",
                'Leave it out, or name a GPU with `device="cuda"`.',
            )
    if gpu_layers is not None and gpu_layers < 0:
        raise ConfigError(f"gpu_layers is {gpu_layers}; it is a number of layers.")
    return tuple(chosen)


def place_model(
    source: ModelSource,
    devices: Sequence[torch.device],
    *,
    gpu_layers: int | None,
    vision_offload: bool,
    context: int,
    vision_batch: int,
    kv: KVType,
    dtype: torch.dtype,
) -> DeviceMap | torch.device:
    """The one device itself, where it holds everything; else see `spread`.

    gpu_layers: at most so many of the decoder's layers on GPUs; the first ones are then on the
    processor, as are those that find no room. vision_offload: the tower stays in main memory and
    is streamed to a GPU.
    """
    is_plain = len(devices) == 1 and gpu_layers is None and not vision_offload
    if is_plain and devices[0].type != "cuda":
        return devices[0]
    found = spread(
        source, devices, context=context, vision_batch=vision_batch, kv=kv, dtype=dtype,
        gpu_layers=gpu_layers, vision_offload=vision_offload,
    )  # fmt: skip
    return found.vision if found.is_whole else found


def spread(
    source: ModelSource,
    devices: Sequence[torch.device],
    *,
    context: int,
    vision_batch: int,
    kv: KVType,
    dtype: torch.dtype = torch.bfloat16,
    gpu_layers: int | None = None,
    vision_offload: bool = False,
    machine: Machine | None = None,
) -> DeviceMap:
    """What goes where, as the planner places it in the memory that is free now.

    `dtype`: what is computed in, which weights that are not quantized are kept in.
    CapacityError when it does not fit. `machine`: another one than this, for tests.
    """
    mmproj = source.pair.mmproj.path if source.pair and source.pair.mmproj else None
    stored = stored_model(str(source.path), mmproj)
    config = stored.config
    # The largest page that a model is asked about; its tiles' features are what a plan counts.
    work = plan_workload(
        config, context=context, kv=kv,
        images=0 if config.vision is None else 1, vision_batch=vision_batch,
    )  # fmt: skip
    setting = Setting(
        type="", vision="", work=work, backend=BACKENDS["ivl"],
        tower_on_processor=vision_offload, gpu_layers=gpu_layers, gpu_itemsize=dtype.itemsize,
    )  # fmt: skip
    subject = Subject(name=str(source.path), config=config, tensors=stored.tensors)
    found = make_plan(subject, setting, machine or _machine_of(devices)).placement
    if not found.fits:
        raise CapacityError(
            f"{found.missing_bytes / GIB:.1f} GiB are missing for the model on "
            f"{', '.join(map(str, devices))} and in main memory.",
            f"`ivl plan {shlex.quote(str(source.path))}` says what would fit.",
        )
    return map_of(found, devices, config.decoder.num_layers, vision_offload=vision_offload)


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device now; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes()


def _machine_of(devices: Sequence[torch.device]) -> Machine:
    """These GPUs, as their driver reports them, and this machine's main memory."""
    gpus = []
    for device in devices:
        free, total = torch.cuda.mem_get_info(device)
        known = Device(
            name=f"{torch.cuda.get_device_name(device)} {device}", vendor="nvidia",
            architecture="unknown", form="server", memory_bytes=total, bandwidth=None,
            ops_16bit=None, ops_8bit=None, source="the driver",
        )  # fmt: skip
        gpus.append(Slot(device=known, used_bytes=total - free))
    host = this_machine().host
    return Machine(gpus=tuple(gpus), host=host, is_here=True)
