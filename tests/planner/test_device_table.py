"""Devices by the names that people type."""

from __future__ import annotations

import pytest

from ivl.errors import ConfigError
from ivl.planner.device_table import (
    GIB,
    clouds,
    find_devices,
    match_reported,
    parse_custom,
    table,
)


@pytest.mark.parametrize(
    ("typed", "name", "count"),
    [
        ("a6000", "RTX A6000", 1),
        ("RTX A6000", "RTX A6000", 1),
        ("NVIDIA RTX A6000", "RTX A6000", 1),
        ("3090 x2", "RTX 3090", 2),
        ("2x RTX 3090", "RTX 3090", 2),
        ("2x3090", "RTX 3090", 2),
        ("2 x 3090", "RTX 3090", 2),
        ("rtx3090ti", "RTX 3090 Ti", 1),
        ("m3 max 64gb", "M3 Max 40-core 64GB", 1),
        ("M3Max 36 GB", "M3 Max 30-core 36GB", 1),
        ("a100 80gb sxm", "A100 SXM 80GB", 1),
        ("7900xtx", "Radeon RX 7900 XTX", 1),
        ("4090 laptop", "RTX 4090 Laptop", 1),
        ("4090", "RTX 4090", 1),
        ("RTX 6000 Ada Generation", "RTX 6000 Ada", 1),
        ("4060ti 16gb", "RTX 4060 Ti 16GB", 1),
        ("l4 24gb", "L4", 1),
        ("4x L40S", "L40S", 4),
        ("g5.12xlarge", "A10G", 4),
    ],
)
def test_names_as_people_type_them(typed: str, name: str, count: int) -> None:
    assert [device.name for device in find_devices(typed)] == [name] * count


@pytest.mark.parametrize(
    ("typed", "candidates"),
    [
        ("a100", ["A100 PCIe 40GB", "A100 SXM 80GB"]),
        ("h100", ["H100 PCIe", "H100 SXM", "H100 NVL"]),
        ("rtx 6000", ["Quadro RTX 6000", "RTX 6000 Ada", "RTX PRO 6000"]),
        ("m3 max", ["M3 Max 30-core 36GB", "M3 Max 40-core 128GB"]),
        ("3080", ["RTX 3080 10GB", "RTX 3080 12GB"]),
    ],
)
def test_an_ambiguous_name_lists_the_candidates(typed: str, candidates: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        find_devices(typed)
    assert all(name in caught.value.hint for name in candidates)


@pytest.mark.parametrize("typed", ["GTX Potato", "", "0x 3090", "-1x 3090", "a6000 7gb", "laptop"])
def test_nonsense_has_a_hint(typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_devices(typed)
    assert caught.value.hint


def test_a_typing_error_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="RTX A6000"):
        find_devices("RTX A600O")


@pytest.mark.parametrize(
    ("reported", "gib", "name"),
    [
        ("NVIDIA GeForce RTX 3090", 24, "RTX 3090"),
        ("NVIDIA A100-SXM4-80GB", 80, "A100 SXM 80GB"),
        ("NVIDIA A100-PCIE-40GB", 40, "A100 PCIe 40GB"),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100 SXM"),
        ("Tesla T4", 15, "T4"),
        ("NVIDIA GeForce RTX 4060 Ti", 16, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, "RTX 4090 Laptop"),
        ("Apple M3 Max", 48, "M3 Max 40-core 48GB"),
        ("Something else", 8, None),
    ],
)
def test_names_of_drivers(reported: str, gib: float, name: str | None) -> None:
    found = match_reported(reported, int(gib * GIB))
    assert (found.name if found else None) == name


def test_the_table_is_whole() -> None:
    """Of every device the memory and its source; a bandwidth is there or left out, never 0."""
    devices = table()
    assert len({device.name for device in devices}) == len(devices)
    for device in devices:
        assert device.memory_bytes >= 2 * GIB, device.name
        assert device.source, device.name
        assert device.bandwidth is None or 60e9 <= device.bandwidth <= 8e12, device.name
        # Every one can be named just as it is called.
        assert find_devices(device.name) == [device]
    for cloud in clouds():
        assert len(find_devices(cloud.name)) == cloud.count
        assert cloud.date


def test_a_device_by_its_numbers() -> None:
    device = parse_custom("My card:24GB:900GB/s")
    assert device is not None
    assert (device.memory_bytes, device.bandwidth) == (24 * GIB, 900e9)
    assert parse_custom("RTX 3090") is None
