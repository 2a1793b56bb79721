"""What is found of a machine, from fakes of the files and libraries that tell of it."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any

import pytest

from ivl.errors import ConfigError
from ivl.footprint.placement import GIB
from ivl.host import available_memory_bytes, memory_limits
from ivl.planner.machine import (
    amd_gpus,
    described,
    memory_bandwidth,
    nvidia_gpus,
    this_machine,
    with_memory,
)


class FakeNVML:
    """Two cards, of which the second is cut into slices."""

    CARDS = ((b"NVIDIA GeForce RTX 3090", 24 * GIB, 2 * GIB), (b"NVIDIA H100 PCIe", 80 * GIB, 0))
    SLICES = ((b"NVIDIA H100 PCIe MIG 1g.10gb", 10 * GIB, GIB),)

    def __init__(self) -> None:
        self.is_open = False

    def nvmlInit_v2(self) -> int:
        self.is_open = True
        return 0

    def nvmlShutdown(self) -> int:
        self.is_open = False
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.CARDS)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> int:
        current._obj.value = pending._obj.value = 1 if handle.value == 2 else 0
        return 0 if handle.value == 2 else 3  # not supported

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> int:
        count._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int, part: Any) -> int:
        if index >= len(self.SLICES):
            return 6  # not found
        part._obj.value = 100 + index
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, length: int) -> int:
        name.value = self._of(handle)[0]
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        _, memory._obj.total, memory._obj.used = self._of(handle)
        return 0

    def _of(self, handle: ctypes.c_void_p) -> tuple[bytes, int, int]:
        number = handle.value or 0
        return self.SLICES[number - 100] if number >= 100 else self.CARDS[number - 1]


def test_nvidia_cards_and_slices() -> None:
    library = FakeNVML()
    cards = nvidia_gpus(library)
    assert [(c.name, c.total_bytes // GIB, c.used_bytes // GIB, c.is_slice) for c in cards] == [
        ("NVIDIA GeForce RTX 3090", 24, 2, False),
        ("NVIDIA H100 PCIe MIG 1g.10gb", 10, 1, True),
    ]
    assert not library.is_open


def test_amd_cards(tmp_path: Path) -> None:
    for name, vendor, total in (("card0", "0x1002", 24 * GIB), ("card1", "0x8086", 8 * GIB)):
        device = tmp_path / name / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "mem_info_vram_total").write_text(f"{total}\n")
        (device / "mem_info_vram_used").write_text(f"{3 * GIB}\n")
        (device / "product_name").write_text("AMD Radeon RX 7900 XTX\n")
    [card] = amd_gpus(tmp_path)
    assert (card.name, card.total_bytes, card.used_bytes) == (
        "AMD Radeon RX 7900 XTX", 24 * GIB, 3 * GIB,
    )  # fmt: skip


def test_a_containers_limit_counts_without_its_cached_files(tmp_path: Path) -> None:
    group = tmp_path / "groups" / "box"
    group.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/box\n")
    (group / "memory.max").write_text(f"{8 * GIB}\n")
    (group / "memory.current").write_text(f"{5 * GIB}\n")
    (group / "memory.stat").write_text(f"anon {GIB}\ninactive_file {4 * GIB}\n")
    (tmp_path / "groups" / "memory.max").write_text("max\n")
    assert memory_limits(own, tmp_path / "groups") == [(8 * GIB, GIB)]


def memory_module(locator: str, size_mb: int, transfers: int) -> bytes:
    """An SMBIOS structure of type 17, as a firmware writes it."""
    body = bytearray(0x28)
    body[0:4] = struct.pack("<BBH", 17, len(body), 0)
    struct.pack_into("<HH", body, 0x0A, 64, size_mb)
    body[0x10] = 1
    struct.pack_into("<H", body, 0x15, transfers)
    struct.pack_into("<H", body, 0x20, transfers)
    return bytes(body) + locator.encode() + b"\0\0"


def test_memory_channels(tmp_path: Path) -> None:
    """Two modules of a channel share it; an empty socket is no channel."""
    table = tmp_path / "DMI"
    modules = [("DIMM_A1", 16384), ("DIMM_A2", 16384), ("DIMM_B1", 16384), ("DIMM_C1", 0)]
    end = struct.pack("<BBH", 127, 4, 0) + b"\0\0"
    table.write_bytes(b"".join(memory_module(name, size, 3200) for name, size in modules) + end)
    assert memory_bandwidth(table) == 2 * 25.6e9


@pytest.mark.parametrize("modules", [[("DIMM 0", 1024, 3200)], [("DIMM_A1", 1024, 0)], []])
def test_what_cannot_be_read_is_not_guessed(
    modules: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    table = tmp_path / "DMI"
    table.write_bytes(b"".join(memory_module(*module) for module in modules))
    assert memory_bandwidth(table) is None
    assert memory_bandwidth(tmp_path / "nothing") is None


def test_this_machine() -> None:
    machine = this_machine()
    assert machine.host is not None
    free = available_memory_bytes()
    assert free is not None
    host = machine.host
    assert host.device.memory_bytes - host.used_bytes == pytest.approx(free, rel=0.1)
    limited = with_memory(machine, "3GB").host
    assert limited is not None
    assert limited.device.memory_bytes - limited.used_bytes == 3 * GIB


@pytest.mark.parametrize("memory", ["lots", "0GB", "-3GB", "24"])
def test_memory_that_means_nothing(memory: str) -> None:
    with pytest.raises(ConfigError, match="memory") as caught:
        with_memory(this_machine(), memory)
    assert caught.value.hint


def test_several_different_cards_and_main_memory() -> None:
    machine = described(["3090", "4090"], "64GB:50GB/s")
    assert [slot.device.name for slot in machine.gpus] == ["RTX 3090", "RTX 4090"]
    assert machine.host is not None
    assert machine.host.device.bandwidth == 50e9
    with pytest.raises(ConfigError, match="main memory"):
        described(["3090"], "a lot")
    rented = described(["g5.xlarge"])
    assert rented.host is not None
    assert rented.host.device.memory_bytes == 16 * GIB
    assert rented.usd_per_hour


@pytest.mark.parametrize(
    "typed",
    [
        "3090, 4090",
        "3090 + 4090",
        "3090+4090",
        "1x3090+1x4090",
        "3090 and 4090",
        "1x 3090 & 1x 4090",
    ],
)
def test_a_list_of_devices_in_one_text(typed: str) -> None:
    assert [slot.device.name for slot in described([typed]).gpus] == ["RTX 3090", "RTX 4090"]


@pytest.mark.parametrize(
    ("typed", "gib", "bandwidth"),
    [
        ("cpu 64gb", 64, None),
        ("64 GB CPU", 64, None),
        ("CPU with 64GB RAM", 64, None),
        ("cpu:64GB:80GB/s", 64, 80e9),
        ("processor 32 GiB", 32, None),
        ("cpu 32gb ddr4", 32, None),
        ("cpu 64gb ddr5-5600", 64, None),
    ],
)
def test_a_processor_like_this_one_with_other_memory(
    typed: str, gib: int, bandwidth: float | None
) -> None:
    here, machine = this_machine(), described([typed])
    assert here.host is not None
    assert machine.host is not None
    assert machine.gpus == ()
    assert not machine.is_here
    assert machine.host.device.name == here.host.device.name
    assert (machine.host.device.memory_bytes, machine.host.used_bytes) == (gib * GIB, 0)
    assert machine.host.device.bandwidth == (bandwidth or here.host.device.bandwidth)


@pytest.mark.parametrize("names", [["2x cpu"], ["cpu", "3090"], ["dual cpu 64gb"], ["cpu 0GB"]])
def test_a_processor_is_planned_by_itself(names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        described(names)
    assert "cpu 64GB" in caught.value.hint
