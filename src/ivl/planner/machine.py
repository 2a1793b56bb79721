"""This machine, or one that is described: its GPUs and its processor, with what is free.

Nothing is measured here: what was measured before is read from a file (`ivl.planner.probe`).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ivl.errors import ConfigError
from ivl.footprint.device import GIB, Device, Devices, Slot
from ivl.host import (
    available_memory_bytes,
    has_bfloat16_products,
    has_float16_products,
    processor_name,
    total_memory_bytes,
)
from ivl.planner.device_names import is_processor, parts_of, readings, tidy, written
from ivl.planner.device_table import (
    Meaning,
    find_cloud,
    find_meaning,
    match_reported,
    parse_custom,
    require_amounts,
)
from ivl.planner.dmi import memory_bandwidth
from ivl.planner.nvml import ReportedGpu, nvidia_gpus
from ivl.planner.probe import Probe, read_probe

DRM = Path("/sys/class/drm")
AMD_VENDOR = "0x1002"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine(Devices):
    """`is_here`: whether this is the machine that we run on."""

    is_here: bool
    itemsize: int = 2
    """Bytes of a number that ivl computes with on the processor, where none is quantized: 4 without
    bfloat16."""
    probe: Probe | None = None
    usd_per_hour: float | None = None
    price_note: str = ""
    asked: tuple[Meaning, ...] = ()
    """What the names of a described machine were taken for."""


def this_machine() -> Machine:
    """What is here. NVIDIA's cards by NVML, AMD's by sysfs, Apple's by sysctl."""
    name, total = processor_name(), total_memory_bytes() or 0
    free = available_memory_bytes()
    apple = _apple_gpu()
    probe = read_probe(name)
    channels = None if apple else memory_bandwidth()
    speed = probe.bandwidth if probe else channels
    source = "memory modules" if channels else ""
    if probe:
        source = f"measured here on {probe.date} by `{probe.by}`"
    host = Device(
        name=name,
        vendor="cpu",
        architecture=platform.machine().lower(),
        form="host",
        memory_bytes=total,
        bandwidth=speed,
        source=source,
    )
    used = 0 if free is None else max(0, total - free)
    reported = [*nvidia_gpus(), *amd_gpus()]
    gpus = [_slot(gpu) for gpu in reported]
    if apple is not None:
        gpus.append(Slot(device=apple, used_bytes=used))
    return Machine(
        gpus=tuple(gpus),
        host=Slot(device=host, used_bytes=used),
        is_here=True,
        float16_tower=has_float16_products(),
        itemsize=2 if has_bfloat16_products() else 4,
        probe=probe,
    )


def described(names: Sequence[str], host: str | None = None) -> Machine:
    """A machine of the devices that are named, one or several in a text; `cpu` is a processor like
    this machine's alone, with its memory or with as much as is written, `cpu 64GB`.

    `host` describes its main memory, `64GB` or `64GB:80GB/s`; a rented instance has its own, and
    a device that shares its memory with the processor has no other.
    ConfigError for a name that fits no device, or says too little.
    """
    names = [part for name in names for part in parts_of(name)]
    processor = _described_processor(names)
    if processor is not None:
        if host is not None:
            raise ConfigError(
                "A processor alone has no other main memory.", 'Write it as "cpu 64GB:80GB/s".'
            )
        return processor
    found = tuple(find_meaning(name) for name in names)
    cloud = next((c for c in map(find_cloud, names) if c is not None), None)
    main = None
    unified = next((one.device.name for one in found if one.device.form == "unified"), None)
    if host is not None and unified is not None:
        raise ConfigError(
            f"{unified} has no other main memory: its processor and its GPU share one.",
            'Leave --host out. Another memory is written with the device, as in "m2 ultra 64gb".',
        )
    if host is not None:
        main = parse_custom(f"main memory:{host}")
        if main is None or not main.memory_bytes:
            raise ConfigError(
                f"{host!r} does not describe main memory.", "Write --host 64GB or 64GB:80GB/s."
            )
        main = replace(main, form="host", vendor="cpu")
    elif cloud is not None:
        main = replace(
            parse_custom("main memory:1GB") or found[0].device,
            form="host",
            vendor="cpu",
            memory_bytes=cloud.host_memory_bytes,
            source=cloud.source,
        )
    return Machine(
        gpus=tuple(Slot(device=one.device) for one in found for _ in range(one.count)),
        host=None if main is None else Slot(device=main),
        is_here=False,
        usd_per_hour=cloud.usd_per_hour if cloud else None,
        price_note=f"{cloud.source}, {cloud.date}" if cloud else "",
        asked=found,
    )


def _described_processor(names: Sequence[str]) -> Machine | None:
    """The machine of `cpu`, `cpu 64GB` or `cpu:64GB:80GB/s`; None where something else is named."""
    meant = [name for name in names if any(is_processor(r.rest) for r in readings(name))]
    if not meant:
        return None
    if len(names) > 1 or not is_processor(meant[0]):
        raise ConfigError(
            "A processor is planned by itself: not beside others, and not several of them.",
            'Write --device "cpu 64GB"; beside GPUs its memory is given with --host 64GB.',
        )
    asked = written(tidy(names[0]))
    if asked.other is not None:
        raise ConfigError(
            f"{asked.other!r} is neither memory nor bandwidth.", 'Write "cpu 64GB:80GB/s".'
        )
    require_amounts(names[0], asked)
    here = this_machine()
    host = here.host
    assert host is not None
    device = host.device
    meant = Meaning(text=names[0], device=device, count=1)
    here = replace(here, gpus=(), asked=(meant,))
    num_bytes = asked.memory_bytes or asked.named_bytes
    if num_bytes is None and asked.bandwidth is None:
        return here
    if asked.bandwidth is not None:
        device = replace(device, bandwidth=asked.bandwidth, source="bandwidth given by hand")
    if num_bytes is None:
        return replace(here, is_here=False, host=replace(host, device=device))
    slot = Slot(
        device=replace(device, memory_bytes=num_bytes),
        note="a processor like the one here, with memory as given",
    )
    return replace(here, is_here=False, host=slot)


def with_memory(machine: Machine, text: str) -> Machine:
    """The same with so much memory free on the first device that a model would run on: `24GB`."""
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*(gb|gib|g|mb|mib|m)\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"{text!r} is no amount of memory.", "Write --memory 24GB.")
    num_bytes = int(float(found[1]) * (GIB if found[2].lower().startswith("g") else 1024**2))

    def override(slot: Slot) -> Slot:
        device = replace(slot.device, memory_bytes=num_bytes)
        return replace(slot, device=device, used_bytes=0, note="memory as given with --memory")

    if machine.gpus:
        return replace(machine, gpus=tuple(override(slot) for slot in machine.gpus))
    return replace(machine, host=override(machine.host) if machine.host else None)


def amd_gpus(folder: Path = DRM) -> list[ReportedGpu]:
    """AMD's cards, as the kernel's driver lists them (amdgpu: mem_info_vram_total and _used)."""
    found = []
    for card in sorted(folder.glob("card[0-9]*/device")):
        total = _text(card / "mem_info_vram_total")
        if _text(card / "vendor") != AMD_VENDOR or not total:
            continue
        name = _text(card / "product_name") or f"AMD device {_text(card / 'device')}"
        used = int(_text(card / "mem_info_vram_used") or 0)
        found.append(ReportedGpu(name=name, total_bytes=int(total), used_bytes=used))
    return found


def _slot(gpu: ReportedGpu) -> Slot:
    known = match_reported(gpu.name, gpu.total_bytes) if not gpu.is_slice else None
    if known is not None:
        device = replace(known, name=gpu.name, memory_bytes=gpu.total_bytes)
        return Slot(device=device, used_bytes=gpu.used_bytes)
    vendor = "amd" if gpu.name.startswith("AMD") else "nvidia"
    device = Device(
        name=gpu.name,
        vendor=vendor,
        architecture="unknown",
        form="server" if gpu.is_slice else "desktop",
        memory_bytes=gpu.total_bytes,
        source="the driver; its speed is in no table",
    )
    note = "a MIG slice" if gpu.is_slice else ""
    return Slot(device=device, used_bytes=gpu.used_bytes, note=note)


def _apple_gpu() -> Device | None:
    """The GPU of an Apple chip; its memory is main memory."""
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return None
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    name, size = ctypes.create_string_buffer(128), ctypes.c_size_t(128)
    memory, memory_size = ctypes.c_uint64(), ctypes.c_size_t(8)
    if library.sysctlbyname(b"machdep.cpu.brand_string", name, ctypes.byref(size), None, 0):
        return None
    if library.sysctlbyname(
        b"hw.memsize", ctypes.byref(memory), ctypes.byref(memory_size), None, 0
    ):
        return None
    called = name.value.decode("ascii", "replace")
    known = match_reported(called, memory.value)
    if known is not None:
        return known
    return Device(
        name=called,
        vendor="apple",
        architecture="apple",
        form="unified",
        memory_bytes=memory.value,
        source="the system; its speed is in no table",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
