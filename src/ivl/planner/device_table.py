"""Devices by the names that people type: a table of data sheets, and how names are matched.

`devices.csv` and `clouds.csv` hold the numbers, each with its source. An empty field is a number
that the maker does not publish (or that depends on the machine, as a laptop's power limit): it is
never filled with a guess. Peaks are dense, with sums in float32.
"""

from __future__ import annotations

import csv
import difflib
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ivl.errors import ConfigError

GIB, MIB = 1024**3, 1024**2
HERE = Path(__file__).parent
Vendor = Literal["nvidia", "amd", "intel", "apple", "cpu", "unknown"]
Form = Literal["server", "workstation", "desktop", "laptop", "unified", "host"]

# Words that people leave out as often as not.
_BRANDS = frozenset(
    "nvidia geforce rtx gtx tesla amd radeon rx instinct intel arc apple gpu graphics card "
    "generation edition with ryzen ai chip data center pcie5".split()
)
_WORDS = {
    "mobile": "laptop",
    "notebook": "laptop",
    "max-q": "laptop",
    "sxm4": "sxm",
    "sxm5": "sxm",
    "hbm3": "sxm",
}
_SEVERAL = r"(?:(?P<before>-?\d+)\s*[x*×]\s+|(?P<glued>\d{1,2})[x*×](?=[a-z\d]))"
_SEVERAL_AFTER = r"\s+(?:[x*×]\s*(?P<after>\d+)|(?P<last>\d+)[x*×])$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. Bandwidth in bytes a second, peaks in operations a second; None: not known."""

    name: str
    vendor: Vendor
    architecture: str
    form: Form
    memory_bytes: int
    """What a program is told that there is, the driver's own use not taken off."""
    bandwidth: float | None
    ops_16bit: float | None
    ops_8bit: float | None
    source: str

    @property
    def is_gpu(self) -> bool:
        return self.form != "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """An instance that can be rented, with its price on a date."""

    name: str
    device: str
    count: int
    host_memory_bytes: int
    usd_per_hour: float
    date: str
    source: str


def find_devices(text: str) -> list[Device]:
    """The devices that a person names: `a6000`, `3090 x2`, `2x RTX 3090`, `m3 max 64gb`,
    `g5.12xlarge`.

    Raises ConfigError: for a name that fits none, with the nearest; for one that fits several, with
    all of them; for a count below 1.
    """
    for cloud in clouds():
        if text.strip().lower() == cloud.name.lower():
            return [find_device(cloud.device)] * cloud.count
    name, count = _split_count(text)
    if not 1 <= count <= 64:
        raise ConfigError(f"{count} devices are none to plan for.", 'Write "2x RTX 3090", 1 to 64.')
    return [find_device(name)] * count


def find_cloud(text: str) -> Cloud | None:
    """The instance of that name, for its memory and its price."""
    return next((c for c in clouds() if c.name.lower() == text.strip().lower()), None)


def find_device(text: str) -> Device:
    """The one device that the name means. Errors as in `find_devices`."""
    wanted, memory_gib = _words(text)
    if not wanted:
        raise ConfigError(f"{text!r} names no device.", 'Write the name as in "RTX 3090".')
    fitting = [device for device in table() if wanted <= _words(device.name)[0]]
    exact = [device for device in fitting if wanted == _words(device.name)[0]]
    if exact:
        fitting = exact
    elif all(device.form == "laptop" for device in fitting):
        fitting = fitting if "laptop" in wanted else []
    else:  # a laptop's card is meant only where one is named
        fitting = [d for d in fitting if d.form != "laptop" or "laptop" in wanted]
    if not fitting:
        raise ConfigError(f"There is no device called {text!r} in the table.", _nearest(text))
    if memory_gib is not None:
        found = [device for device in fitting if _nominal_gib(device) == memory_gib]
        if not found:
            sizes = ", ".join(_label(device) for device in fitting)
            raise ConfigError(f"No {text!r} has {memory_gib} GB.", f"There are: {sizes}.")
        fitting = found
    if len(fitting) > 1:
        names = "; ".join(_label(device) for device in fitting)
        raise ConfigError(f"{text!r} may be several devices.", f"Name one of: {names}.")
    return fitting[0]


@functools.cache
def table() -> tuple[Device, ...]:
    """Every device of `devices.csv`; one that is sold with several memories is there for each."""
    with (HERE / "devices.csv").open(encoding="utf-8", newline="") as file:
        return tuple(device for row in csv.DictReader(file) for device in _devices_of(row))


@functools.cache
def clouds() -> tuple[Cloud, ...]:
    with (HERE / "clouds.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Cloud(
                name=row["name"],
                device=row["device"],
                count=int(row["count"]),
                host_memory_bytes=int(row["host_memory_gib"]) * GIB,
                usd_per_hour=float(row["usd_per_hour"]),
                date=row["date"],
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )


def match_reported(name: str, memory_bytes: int) -> Device | None:
    """The table's entry for a device that a driver reports, such as `NVIDIA GeForce RTX 3090`;
    None where there is no single one."""
    wanted, _ = _words(name)
    fitting = [device for device in table() if wanted == _words(device.name)[0]]
    fitting = fitting or [
        device for device in table() if wanted and wanted <= _words(device.name)[0]
    ]
    near = [d for d in fitting if abs(d.memory_bytes - memory_bytes) < 0.1 * d.memory_bytes]
    return near[0] if len(near) == 1 else None


def _devices_of(row: dict[str, str]) -> list[Device]:
    found = []
    vendor, form = row["vendor"], row["form"]
    assert vendor in get_args(Vendor), row["name"]
    assert form in get_args(Form), row["name"]
    for gib in row["memory_gib"].split("|"):
        reported = int(row["reported_mib"]) * MIB if row["reported_mib"] else int(gib) * GIB
        several = "|" in row["memory_gib"]
        found.append(
            Device(
                name=f"{row['name']} {gib}GB" if several else row["name"],
                vendor=vendor,  # type: ignore[arg-type]
                architecture=row["architecture"],
                form=form,  # type: ignore[arg-type]
                memory_bytes=reported,
                bandwidth=_scaled(row["bandwidth_gb_s"], 1e9),
                ops_16bit=_scaled(row["bits16_tflops"], 1e12),
                ops_8bit=_scaled(row["int8_tops"], 1e12),
                source=row["source"],
            )
        )
    return found


def _scaled(text: str, unit: float) -> float | None:
    return float(text) * unit if text else None


def _split_count(text: str) -> tuple[str, int]:
    lowered = text.strip().lower()
    if found := re.match(_SEVERAL, lowered):
        return lowered[found.end() :], int(found["before"] or found["glued"])
    if found := re.search(_SEVERAL_AFTER, lowered):
        return lowered[: found.start()], int(found["after"] or found["last"])
    return lowered, 1


def _words(text: str) -> tuple[frozenset[str], int | None]:
    """The words that tell devices apart, and a number of gigabytes."""
    lowered = text.lower().replace("(tm)", " ").replace("(r)", " ")
    memory = re.search(r"\b(\d+)\s*(?:gb|gib|g)\b", lowered)
    if memory:
        lowered = lowered[: memory.start()] + " " + lowered[memory.end() :]
    lowered = re.sub(r"-(?!core\b|q\b)", " ", lowered)  # A100-SXM4-80GB, but 40-core and max-q
    lowered = re.sub(r"\b(rtx|gtx|rx)[_ ]?(?=[\da])", r"\1 ", lowered)
    lowered = re.sub(r"\b(\d{3,4})(ti|super|xtx|xt|gre|d|m)\b", r"\1 \2", lowered)
    lowered = re.sub(r"\b(m[1-9])(pro|max|ultra)\b", r"\1 \2", lowered)
    lowered = re.sub(r"\bti(super)\b", r"ti \1", lowered)
    words = re.findall(r"[a-z0-9+-]+", lowered)
    kept = {_WORDS.get(str(word), str(word)) for word in words if word not in _BRANDS}
    return frozenset(kept), int(memory[1]) if memory else None


def _nominal_gib(device: Device) -> int:
    named = _words(device.name)[1]
    if named is not None:
        return named
    # Memory with error correction reports a sixteenth less than is sold.
    gib = device.memory_bytes / GIB
    return next((n for n in (16, 24, 48, 80, 141) if 0.93 * n <= gib <= n), round(gib))


def _label(device: Device) -> str:
    named = _words(device.name)[1]
    return device.name if named is not None else f"{device.name} ({_nominal_gib(device)} GB)"


def _nearest(text: str) -> str:
    names = {device.name.lower(): device.name for device in table()}
    near = difflib.get_close_matches(text.strip().lower(), names, n=3, cutoff=0.6)
    hint = f"Did you mean {', '.join(names[n] for n in near)}? " if near else ""
    return (
        f"{hint}For a device that is not there, give its numbers: "
        '--device "NAME:24GB:900GB/s", or its memory alone: "NAME:24GB".'
    )


def parse_custom(text: str) -> Device | None:
    """A device by its numbers, `NAME:24GB` or `NAME:24GB:900GB/s`; None for anything else."""
    found = re.fullmatch(
        r"(?P<name>[^:]+):(?P<memory>\d+(?:\.\d+)?)\s*gi?b?(?::(?P<speed>\d+(?:\.\d+)?)\s*gb/s)?",
        text.strip(),
        re.IGNORECASE,
    )
    if found is None:
        return None
    return Device(
        name=found["name"].strip(),
        vendor="unknown",
        architecture="unknown",
        form="desktop",
        memory_bytes=int(float(found["memory"]) * GIB),
        bandwidth=_scaled(found["speed"] or "", 1e9),
        ops_16bit=None,
        ops_8bit=None,
        source="given by hand",
    )
