"""The table of devices, from data sheets, and of machines that can be rented.

`devices.csv` and `clouds.csv` hold the numbers, each with its source. An empty field is a number
that the maker does not publish (or that depends on the machine, as a laptop's power limit): it is
never filled with a guess. Peaks are dense, with sums in float32.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

GIB, MIB = 1024**3, 1024**2
HERE = Path(__file__).parent
Vendor = Literal["nvidia", "amd", "intel", "apple", "cpu", "unknown"]
DEVICES_OF_A_CARD = {
    "Instinct MI250": 2, "Instinct MI250X": 2, "A16": 4, "Data Center GPU Max 1550": 2,
}  # fmt: skip
"""Cards that are several devices to every program, each with its own part of the memory: by name,
how many. Their rows in the table are of one such device."""
Form = Literal["server", "workstation", "desktop", "laptop", "unified", "host"]


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
