"""Which devices a model is loaded to: all on one, or spread as `ivl plan` says."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

import torch

from ivl.checkpoint.files import tensors_of
from ivl.errors import CapacityError, ConfigError
from ivl.footprint.device import GIB, Device, Devices, Slot
from ivl.footprint.placement import Fit
from ivl.footprint.room import fit, require_room
from ivl.footprint.workload import loaded_workload
from ivl.host import available_memory_bytes, has_float16_products, total_memory_bytes
from ivl.kv import KVType
from ivl.model.device_map import DeviceMap, map_of
from ivl.model.source import ModelSource


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
        tower_on_processor=vision_offload,
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
