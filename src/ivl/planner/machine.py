"""This machine, or one that is described: its GPUs and its processor, with what is free.

NVIDIA's cards are listed by NVML (nvml.h of the CUDA toolkit), AMD's by sysfs, Apple's by sysctl,
channels of memory by the firmware's tables. Nothing is measured here: `ivl plan --probe`
(`ivl.measure.speed`) and `ivl info --machine` measure, and what they find is kept in a file.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import platform
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from ivl.errors import ConfigError
from ivl.footprint.placement import GIB, Device, Devices, Slot
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

BY_PROBE, BY_INFO = "ivl plan --probe", "ivl info --machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`bandwidth` in bytes a second, measured on `date` by the command `by`; the others in
    operations a second (two for each product and sum) that ivl's own kernels reach, None where only
    the bandwidth was measured."""

    processor: str
    date: str
    threads: int
    bandwidth: float
    quantized_ops: float | None = None
    """Products of quantized matrices with many rows of activations: reading a prompt."""
    float_ops: float | None = None
    """Products of 16-bit matrices with many rows."""
    tower_ops: float | None = None
    """Products of the vision tower, in the arithmetic that it chooses here."""
    by: str = BY_PROBE


def probe_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ivl" / "probe.json"


def read_probe(processor: str) -> Probe | None:
    """The record of this processor; None where there is none, or one that cannot be used."""
    try:
        record = json.loads(probe_path().read_text("utf-8"))
        known = {field.name for field in fields(Probe)}
        probe = Probe(**{name: value for name, value in record.items() if name in known})
        if probe.processor != processor or not probe.bandwidth > 0:
            return None
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return probe


def write_probe(probe: Probe) -> Path:
    path = probe_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(probe), indent=1) + "\n", "utf-8")
    return path


def keep_bandwidth(processor: str, bandwidth: float, *, threads: int, by: str = BY_INFO) -> Path:
    """Puts a newly measured bandwidth, in bytes a second, into the record; what else was measured
    of this processor stays. OSError where it cannot be written."""
    known = read_probe(processor)
    today = date.today().isoformat()
    if known is None:
        known = Probe(processor=processor, date=today, threads=threads, bandwidth=bandwidth, by=by)
    return write_probe(replace(known, date=today, threads=threads, bandwidth=bandwidth, by=by))


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
                "A processor has no main memory besides its own.", 'Write it as "cpu 64GB:80GB/s".'
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
            "A processor is planned on its own, not together with other devices.",
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
        raise ConfigError(f"{text!r} is not an amount of memory.", "Write --memory 24GB.")
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


_NAME_BYTES = 96
_ENABLED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedGpu:
    """What a driver says of one card, or of one slice of it. Bytes."""

    name: str
    total_bytes: int
    used_bytes: int
    is_slice: bool = False


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def nvidia_gpus(library: ctypes.CDLL | None = None) -> list[ReportedGpu]:
    """The cards of this machine; none where there is no driver. `library`: NVML, loaded."""
    nvml = library or _load()
    if nvml is None or nvml.nvmlInit_v2():
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        found = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if not nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                found += _slices(nvml, handle) or _card(nvml, handle)
        return found
    finally:
        nvml.nvmlShutdown()


def _load() -> Any:
    try:
        return ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None


def _card(nvml: Any, handle: ctypes.c_void_p, *, is_slice: bool = False) -> list[ReportedGpu]:
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), _Memory()
    if nvml.nvmlDeviceGetName(handle, name, _NAME_BYTES):
        return []
    if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return []
    return [
        ReportedGpu(
            name=name.value.decode("utf-8", "replace"),
            total_bytes=memory.total,
            used_bytes=memory.used,
            is_slice=is_slice,
        )
    ]


def _slices(nvml: Any, handle: ctypes.c_void_p) -> list[ReportedGpu]:
    """The MIG slices of a card; none where it is whole."""
    current, pending, most = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    if nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(current), ctypes.byref(pending)):
        return []
    if current.value != _ENABLED:
        return []
    if nvml.nvmlDeviceGetMaxMigDeviceCount(handle, ctypes.byref(most)):
        return []
    found = []
    for index in range(most.value):
        part = ctypes.c_void_p()
        if not nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index, ctypes.byref(part)):
            found += _card(nvml, part, is_slice=True)
    return found


TABLE = Path("/sys/firmware/dmi/tables/DMI")
_MEMORY_DEVICE, _END = 17, 127
_UNKNOWN = (0, 0xFFFF)
_DEFAULT_BITS = 64


def memory_bandwidth(path: Path = TABLE) -> float | None:
    """The peak of all populated channels, in bytes a second; None where it cannot be read: most
    systems let only the superuser, and virtual machines leave the speeds out.

    Source: DMTF DSP0134 (SMBIOS), structures of type 17."""
    try:
        table = path.read_bytes()
    except OSError:
        return None
    channels: dict[str, float] = {}
    for kind, formatted, strings in _structures(table):
        if kind != _MEMORY_DEVICE or len(formatted) < 0x17:
            continue
        bits, size = struct.unpack_from("<HH", formatted, 0x0A)
        transfers = struct.unpack_from("<H", formatted, 0x15)[0]
        if len(formatted) >= 0x22:
            configured = struct.unpack_from("<H", formatted, 0x20)[0]
            transfers = configured if configured not in _UNKNOWN else transfers
        if size == 0:  # an empty socket
            continue
        channel = _channel(" ".join(_string(strings, formatted[at]) for at in (0x10, 0x11)))
        if channel is None or transfers in _UNKNOWN:
            return None
        width = _DEFAULT_BITS if bits in _UNKNOWN else bits
        channels[channel] = transfers * 1e6 * width / 8
    return sum(channels.values()) or None


def _channel(locators: str) -> str | None:
    """Which channel a socket belongs to, by what the maker prints: `P0 CHANNEL A`, `DIMM_B1`."""
    node = re.search(r"\b(?:P|CPU|NODE|Controller)[ _]?(\d)", locators, re.IGNORECASE)
    found = re.search(r"CHANNEL[ _-]?([A-Z0-9])", locators, re.IGNORECASE) or re.search(
        r"DIMM[ _-]?([A-Z])\d*", locators, re.IGNORECASE
    )
    return f"{node[1] if node else 0}{found[1].upper()}" if found else None


def _structures(table: bytes) -> Iterator[tuple[int, bytes, list[str]]]:
    """Kind, formatted area and strings of every structure."""
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        end = table.find(b"\0\0", at + length)
        if length < 4 or end < 0:
            return
        text = table[at + length : end].decode("latin-1")
        yield kind, table[at : at + length], text.split("\0")
        if kind == _END:
            return
        at = end + 2


def _string(strings: list[str], number: int) -> str:
    return strings[number - 1] if 1 <= number <= len(strings) else ""
