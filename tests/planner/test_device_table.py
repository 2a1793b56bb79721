"""Devices by the names that people type."""

from __future__ import annotations

import pytest

from ivl.errors import ConfigError
from ivl.footprint.placement import GIB, Device
from ivl.planner.device_table import (
    DEVICES_OF_A_CARD,
    clouds,
    find_meaning,
    match_reported,
    parse_custom,
    table,
)


def find_devices(text: str) -> list[Device]:
    """Every device that a text names: the same one as often as it says."""
    meaning = find_meaning(text)
    return [meaning.device] * meaning.count


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
    ("typed", "name", "count"),
    [
        # A count in every form, of known devices and of described ones.
        ("2x A6000:48GB", "RTX A6000", 2),
        ("4x BIG:48GB:900GB/s", "BIG", 4),
        ("4 BIG:48GB", "BIG", 4),
        ("BIG:48GB x 4", "BIG", 4),
        ("BIG x4:48GB", "BIG", 4),
        ("dual BIG:48GB", "BIG", 2),
        ("4 x 4090", "RTX 4090", 4),
        ("4090 x 2", "RTX 4090", 2),
        ("4090x2", "RTX 4090", 2),
        ("4090 ×2", "RTX 4090", 2),
        ("2×4090", "RTX 4090", 2),
        ("2*4090", "RTX 4090", 2),
        ("x2 4090", "RTX 4090", 2),
        ("4090 (x2)", "RTX 4090", 2),
        ("(2) 4090", "RTX 4090", 2),
        ("dual 3090", "RTX 3090", 2),
        ("Dual-3090", "RTX 3090", 2),
        ("two 3090s", "RTX 3090", 2),
        ("a pair of 3090s", "RTX 3090", 2),
        ("quad a6000", "RTX A6000", 4),
        ("2 3090", "RTX 3090", 2),
        ("3090 2", "RTX 3090", 2),
        ("8xH100", "H100 SXM", 8),
        ("8 h100", "H100 SXM", 8),
        ("2x 7900xtx", "Radeon RX 7900 XTX", 2),
        ("6800 xt x2", "Radeon RX 6800 XT", 2),
        ("2xT4", "T4", 2),
        ("two l40s", "L40S", 2),
        ("3090 24gb x2", "RTX 3090", 2),
        # Makers' words, and what a chip is built into.
        ("NVIDIA GeForce RTX™ 4090 24 GB GPU", "RTX 4090", 1),
        ("asus rog strix rtx 3090", "RTX 3090", 1),
        ("macbook pro m4 pro 48gb", "M4 Pro 48GB", 1),
        ("MacBook Pro 16-inch M1 Max 64GB", "M1 Max 64GB", 1),
        ("macbook pro 14 m3 pro 18gb", "M3 Pro 18GB", 1),
        ("macbook pro m1 16gb", "M1 16GB", 1),
        ("mac studio m2 ultra 192gb", "M2 Ultra 192GB", 1),
        ("mac mini m4 pro 64 gb", "M4 Pro 64GB", 1),
        ("evga 3090 ftw3", "RTX 3090", 1),
        ("evga 3090 ftw3 ultra", "RTX 3090", 1),
        ("3090 fe", "RTX 3090", 1),
        ("3090 ti fe", "RTX 3090 Ti", 1),
        ("msi rtx 4090 suprim x 24gb", "RTX 4090", 1),
        ("msi 3090 gaming x trio", "RTX 3090", 1),
        ("msi rtx 3090 ventus 3x 24g oc", "RTX 3090", 1),
        ("gigabyte aorus 4080 master", "RTX 4080", 1),
        ("asus dual rtx 4060 ti 16gb", "RTX 4060 Ti 16GB", 1),
        ("zotac 3090 trinity oc", "RTX 3090", 1),
        ("sapphire nitro 7900 xtx", "Radeon RX 7900 XTX", 1),
        ("3090 24gb gddr6x", "RTX 3090", 1),
        ("h100x4 80gb", "H100 SXM", 4),
        ("4090x2 24gb", "RTX 4090", 2),
        ("6800 xt x2 16gb", "Radeon RX 6800 XT", 2),
        ("dgx h100", "H100 SXM", 8),
        ("HGX-H100", "H100 SXM", 8),
        ("NVIDIA DGX A100", "A100 SXM 80GB", 8),
        ("dgx a100 640gb", "A100 SXM 80GB", 8),
        ("dgx a100 320gb", "A100 SXM 40GB", 8),
        ("dgx b200", "B200", 8),
        ("8x hgx h100", "H100 SXM", 8),
        ("g5.2xlarge", "A10G", 1),
        ("G5.48xlarge", "A10G", 8),
        ("g4dn.12xlarge", "T4", 4),
        ("Standard_NC24ads_A100_v4", "A100 PCIe 80GB", 1),
        ("standard nc40ads h100 v5", "H100 NVL", 1),
        ("m2 max 96gb unified memory", "M2 Max 96GB", 1),
        ("m2 ultra 76-core 192gb", "M2 Ultra 192GB", 1),
        ("m3 max 64", "M3 Max 40-core 64GB", 1),
        ("strix halo 128gb", "Ryzen AI Max+ 395 128GB", 1),
        ("framework desktop 64gb", "Ryzen AI Max+ 395 64GB", 1),
        ("ryzen ai max 395 96gb", "Ryzen AI Max+ 395 96GB", 1),
        ("dgx spark", "GB10 DGX Spark", 1),
        ("mi300", "Instinct MI300X", 1),
        ("4060 ti 16", "RTX 4060 Ti 16GB", 1),
        ("4080s", "RTX 4080 Super", 1),
        ("two 4080s", "RTX 4080", 2),
        ("a6000 ada", "RTX 6000 Ada", 1),
        ("rtx 6000 24gb", "Quadro RTX 6000", 1),
        ("h100 94gb", "H100 NVL", 1),
        ("b200 192gb", "B200", 1),
    ],
)
def test_how_many_of_what(typed: str, name: str, count: int) -> None:
    assert [device.name for device in find_devices(typed)] == [name] * count


@pytest.mark.parametrize(
    ("typed", "meant", "other"),
    [
        ("a100", "A100 SXM 80GB", "A100 PCIe 40GB"),
        ("a100 80gb", "A100 SXM 80GB", "A100 PCIe 80GB"),
        ("h100", "H100 SXM", "H100 NVL"),
        ("8xH100", "H100 SXM", "H100 PCIe"),
        ("v100 32gb", "Tesla V100 SXM2 32GB", "Tesla V100 PCIe 32GB"),
        ("rtx 6000", "RTX 6000 Ada", "Quadro RTX 6000"),
        ("m3 max", "M3 Max 30-core 36GB", "M3 Max 40-core 128GB"),
        ("m2", "M2 8GB", "M2 24GB"),
        ("3080", "RTX 3080 10GB", "RTX 3080 12GB"),
        ("strix halo", "Ryzen AI Max+ 395 128GB", "Ryzen AI Max+ 395 64GB"),
    ],
)
def test_an_ambiguous_name_means_the_commonest_and_says_so(
    typed: str, meant: str, other: str
) -> None:
    meaning = find_meaning(typed)
    assert meaning.device.name == meant
    said, _, others = meaning.note.partition("Others of that name differ in")
    assert meant in said
    assert other in others
    devices = [find_devices(name)[0] for name in (meant, other)]
    speeds = {(device.bandwidth, device.ops_16bit) for device in devices}
    assert ("speed" in others.partition(":")[0]) == (len(speeds) > 1)


@pytest.mark.parametrize("typed", ["rtx 4090", "a100 sxm 80gb", "2x 3090", "m3 max 64gb"])
def test_a_name_that_is_clear_has_no_note(typed: str) -> None:
    assert find_meaning(typed).note == ""


@pytest.mark.parametrize("typed", ["4090:24GB", "4090 24gb", "4090:24 GiB", "4090:24576MB"])
def test_memory_of_a_known_card_leaves_it_what_it_is(typed: str) -> None:
    assert find_devices(typed) == find_devices("RTX 4090")


@pytest.mark.parametrize("typed", ["4090:48GB", "4090 48gb"])
def test_memory_that_a_card_is_not_sold_with_is_planned_and_said(typed: str) -> None:
    meaning, known = find_meaning(typed), find_devices("RTX 4090")[0]
    assert meaning.device.memory_bytes == 48 * GIB
    assert (meaning.device.bandwidth, meaning.device.architecture, meaning.device.ops_16bit) == (
        known.bandwidth, known.architecture, known.ops_16bit,
    )  # fmt: skip
    assert "is sold with 24 GB" in meaning.note
    assert "M4 Pro 48GB" in find_meaning("macbook pro m4 48gb").note


def test_memory_of_all_cards_together_is_shared_among_them() -> None:
    meaning = find_meaning("dual 3090 48gb")
    assert meaning.device == find_devices("RTX 3090")[0]
    assert "24 GB each" in meaning.note


@pytest.mark.parametrize(
    ("typed", "name", "count", "gib"),
    [
        ("mi250", "Instinct MI250", 2, 64),
        ("2x mi250x", "Instinct MI250X", 4, 64),
        ("mi250 128gb", "Instinct MI250", 2, 64),
        ("2x MI250:128GB", "Instinct MI250", 4, 64),
        ("a16", "A16", 4, 16),
        ("a16 64gb", "A16", 4, 16),
        ("max 1550", "Data Center GPU Max 1550", 2, 64),
    ],
)
def test_a_card_that_is_several_devices(typed: str, name: str, count: int, gib: int) -> None:
    meaning = find_meaning(typed)
    device = meaning.device
    assert (device.name, meaning.count, device.memory_bytes) == (name, count, gib * GIB)
    assert "devices to a program" in meaning.note


def test_a_driver_reports_one_device_of_a_card() -> None:
    for reported, gib in (("AMD Instinct MI250X/MI250", 64), ("NVIDIA A16", 15)):
        found = match_reported(reported, gib * GIB)
        assert found is not None
        assert found.name in DEVICES_OF_A_CARD


def test_a_bandwidth_by_hand_replaces_that_of_the_table() -> None:
    for typed in ("5090:32GB:2TB/s", "5090 2000 GB/s", "5090:2000GB/s"):
        [device] = find_devices(typed)
        assert device.bandwidth == 2e12
        assert device.ops_16bit == find_devices("5090")[0].ops_16bit
        assert "by hand" in device.source


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("GTX Potato", "NAME:24GB"),
        ("", "2x RTX 3090"),
        ("gpu", "Leave --device out"),
        ("cuda:0", "Leave --device out"),
        ("nvidia", "2x RTX 3090"),
        ("macbook", "m3 max 64gb"),
        ("2x", "2x RTX 3090"),
        ("0x 3090", "1 to 64"),
        ("-1x 3090", "1 to 64"),
        ("1.5x 3090", "1 to 64"),
        ("3090 x0", "1 to 64"),
        ("100 3090", '"100x 3090"'),
        ("24 3090", '"24x 3090"'),
        ("3090  64", '"3090:64GB"'),
        ("m3 max 80", '"m3 max:80GB"'),
        ("100000x h100", "1 to 64"),
        ("100x BIG:48GB", "1 to 64"),
        ("0x BIG:48GB", "1 to 64"),
        ("a6000 7gb", "RTX A6000 (48 GB)"),
        ("4090 64gb ram", "--host 64GB"),
        ("4090:0GB", "NAME:24GB"),
        ("BIG:0GB", "NAME:24GB"),
        ("a6000:48", "NAME:24GB"),
        ("H100:8", "2x NAME:24GB"),
        ("2x BIG:48GB:fast", "NAME:24GB:900GB/s"),
        ("laptop", "RTX 4090 Laptop"),
        ("titan", "Titan V"),
        ("max", "M1 Max 32GB"),
        ("ryzen 9 7950x", "cpu 64GB"),
        ("2x FOO", "NAME:24GB"),
        ("g5.3xlarge", "g5.xlarge, g5.12xlarge, g5.2xlarge"),
        ("p3.2xlarge", "Known are"),
        ("Standard_NC96ads_A100_v4", "NC24ads_A100_v4"),
        ("Standard_ND96isr_H100_v5", "NC40ads_H100_v5"),
        ("g2-standard-96", "g2-standard-4"),
        ("a3-highgpu-8g", "a2-highgpu-1g"),
        ("2x g5.xlarge", "its devices"),
    ],
)
def test_nonsense_has_a_hint(typed: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_devices(typed)
    assert told in caught.value.hint


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
        ("Orin (nvgpu)", 61.4, "Jetson AGX Orin 64GB"),
        ("Orin (nvgpu)", 15.3, "Jetson Orin NX 16GB"),
        ("Orin (nvgpu)", 7.4, "Jetson Orin Nano Super 8GB"),
        ("AMD Radeon RX 7900 XT/7900 XTX/7900M", 24, "Radeon RX 7900 XTX"),
        ("AMD Radeon RX 7900 XT/7900 XTX/7900M", 20, "Radeon RX 7900 XT"),
    ],
)
def test_names_of_drivers(reported: str, gib: float, name: str | None) -> None:
    found = match_reported(reported, int(gib * GIB))
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("reported", "gib", "name"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 95.6, "RTX PRO 6000 Blackwell"),
        (
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 95.6,
            "RTX PRO 6000 Blackwell Max-Q",
        ),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95.6, "RTX PRO 6000 Blackwell Server"),
        ("AMD Instinct MI300X OAM", 192, "Instinct MI300X"),
        ("AMD Instinct MI250X/MI250", 64, "Instinct MI250X"),
        ("AMD Radeon RX 7900 XTX", 24, "Radeon RX 7900 XTX"),
        ("NVIDIA GH200 480GB", 95.6, "GH200 96GB"),
        ("NVIDIA GH200 144G HBM3e", 143, "GH200 144GB"),
        ("NVIDIA GB10", 119.7, "GB10 DGX Spark"),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100 SXM"),
        ("NVIDIA H100 PCIe", 79.6, "H100 PCIe"),
        ("NVIDIA H100 NVL", 93.6, "H100 NVL"),
        ("NVIDIA H200", 140.4, "H200 SXM"),
        ("NVIDIA H200 NVL", 140.4, "H200 NVL"),
        ("NVIDIA B200", 179, "B200"),
        ("NVIDIA L40S", 45, "L40S"),
        ("NVIDIA A100-SXM4-80GB", 80, "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", 80, "A100 PCIe 80GB"),
        ("NVIDIA RTX A6000", 48, "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 48, "RTX 6000 Ada"),
        ("Tesla T4", 15, "T4"),
        ("Tesla V100-SXM2-32GB", 32, "Tesla V100 SXM2 32GB"),
        ("Tesla P40", 24, "Tesla P40"),
        ("NVIDIA A10G", 22.5, "A10G"),
        ("NVIDIA A10", 22.5, "A10"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, "RTX 4090 Laptop"),
        ("NVIDIA GeForce RTX 5090", 31.8, "RTX 5090"),
        ("Quadro RTX 8000", 48, "Quadro RTX 8000"),
        ("NVIDIA TITAN RTX", 24, "Titan RTX"),
        ("NVIDIA Thor", 122.8, "Jetson AGX Thor 128GB"),
    ],
)  # fmt: skip
def test_names_of_drivers_are_names_to_type(reported: str, gib: float, name: str) -> None:
    """As nvidia-smi and rocm-smi write them, with the memory that they report."""
    found = match_reported(reported, int(gib * GIB))
    assert found is not None
    assert found.name == find_meaning(reported).device.name == name


def test_memory_of_a_processor_in_a_gpus_name() -> None:
    """NVIDIA GH200 480GB: 480 GB of LPDDR5X beside 96 of HBM3."""
    for typed in ("NVIDIA GH200 480GB", "2x gh200 480gb"):
        meaning = find_meaning(typed)
        assert (meaning.device.name, meaning.device.memory_bytes) == ("GH200 96GB", 96 * GIB)
        assert "processor's memory" in meaning.note


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rtx pro 6000", "RTX PRO 6000 Blackwell"),
        ("rtx pro 6000 max-q", "RTX PRO 6000 Blackwell Max-Q"),
        ("2x RTX PRO 6000 Max-Q 96GB", "RTX PRO 6000 Blackwell Max-Q"),
        ("rtx pro 6000 server edition", "RTX PRO 6000 Blackwell Server"),
        ("rtx 3080 max-q", "RTX 3080 Laptop 8GB"),
    ],
)
def test_max_q_is_a_laptops_but_for_the_card_of_that_name(typed: str, name: str) -> None:
    assert find_meaning(typed).device.name == name


def test_the_table_is_whole() -> None:
    """Of every device the memory and its source; a bandwidth is there or left out, never 0."""
    devices = table()
    assert len({device.name for device in devices}) == len(devices)
    for device in devices:
        assert device.memory_bytes >= 2 * GIB, device.name
        assert device.source, device.name
        assert device.bandwidth is None or 60e9 <= device.bandwidth <= 8e12, device.name
        # Every one can be named just as it is called.
        assert find_devices(device.name) == [device] * DEVICES_OF_A_CARD.get(device.name, 1)
    for cloud in clouds():
        assert len(find_devices(cloud.name)) == cloud.count
        assert cloud.date


def test_a_device_by_its_numbers() -> None:
    device = parse_custom("My card:24GB:900GB/s")
    assert device is not None
    assert (device.memory_bytes, device.bandwidth) == (24 * GIB, 900e9)
    assert parse_custom("RTX 3090") is None
