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


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What a model may be put on. `host`: the processor with main memory, None where nothing is
    known of it."""

    gpus: tuple[Slot, ...] = ()
    host: Slot | None = None
    float16_tower: bool = False
    """Whether the processor has float16 products (AVX-512 FP16), which ivl's tower uses."""

    @property
    def has_one_memory(self) -> bool:
        """Whether a GPU's memory is main memory: nothing that leaves the one is in the other."""
        return any(slot.device.form == "unified" for slot in self.gpus)
