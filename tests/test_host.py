"""How many threads are worth it, told from files laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ivl import host
from ivl.errors import ConfigError
from ivl.host import Cores, choose_threads, cpu_quota, physical_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        # Version 2: `docker run --cpus 2.5` as the container sees it, and as the host names it.
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/system.slice/docker-1.scope\n", {"cpu.max": "250000 100000\n"}, 2.5),
        # A group above ours has less than our own.
        (
            "0::/pods/pod1/main\n",
            {"pods/pod1/main/cpu.max": "max 100000\n", "pods/pod1/cpu.max": "50000 100000\n"},
            0.5,
        ),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        # Version 1, with the empty hierarchy of version 2 beside it, as systemd mounts both.
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n0::/a\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            "4:cpu:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1.5,
        ),
    ],
)
def test_a_container_has_its_quota(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    write(tmp_path / "own", own)
    assert cpu_quota(tmp_path / "own", tmp_path / "cgroup") == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "absent", tmp_path) is None


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in range(8):
        first = cpu % 4
        write(tmp_path / f"cpu{cpu}/topology/thread_siblings_list", f"{first},{first + 4}\n")
    assert physical_cores(range(8), tmp_path) == 4
    assert physical_cores({0, 4, 1}, tmp_path) == 2
    assert physical_cores(range(8), tmp_path / "absent") == 8


@pytest.mark.parametrize(
    ("physical", "quota", "threads"), [(8, None, 8), (8, 3.4, 3), (8, 0.2, 1), (2, 16.0, 2)]
)
def test_no_more_threads_than_can_run(physical: int, quota: float | None, threads: int) -> None:
    assert Cores(allowed=16, physical=physical, quota=quota).threads == threads


def test_a_number_that_is_asked_for_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert choose_threads(None) == 3
    assert choose_threads(5) == 5
    with pytest.raises(ConfigError, match="0"):
        choose_threads(0)
    for wrong in (10**12, 10_000, True, 1.5, "2"):
        with pytest.raises(ConfigError, match="threads is"):
            choose_threads(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpuinfo", "has_bfloat16", "has_float16"),
    [
        ("flags\t\t: fpu avx2 fma\n", False, False),
        ("flags\t\t: avx2 avx512vl avx512bw avx512dq\n", True, False),
        ("flags\t\t: avx512vl avx512bw avx512dq avx512_fp16\n", True, True),
        ("Features\t: fp asimd bf16\n", True, False),
        ("Features\t: fp asimd\n", False, False),
        ("", True, False),
    ],
)
def test_what_the_processor_multiplies(
    cpuinfo: str,
    has_bfloat16: bool,
    has_float16: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "cpuinfo", cpuinfo)
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    assert host.has_bfloat16_products() == has_bfloat16
    assert host.has_float16_products() == has_float16


def test_torch_says_the_same_of_this_processor() -> None:
    assert host.has_bfloat16_products() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
