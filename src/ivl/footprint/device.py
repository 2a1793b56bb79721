"""A device, as a footprint is put on it and a speed is estimated of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB, MIB = 1024**3, 1024**2
Vendor = Literal["nvidia", "amd", "intel", "apple", "cpu", "unknown"]
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
    bandwidth: float | None = None
    ops_16bit: float | None = None
    ops_8bit: float | None = None
    source: str

    @property
    def is_gpu(self) -> bool:
        return self.form != "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A device as it is now. `used_bytes`: what other programs, and the driver, hold of it."""

    device: Device
    used_bytes: int = 0
    note: str = ""
