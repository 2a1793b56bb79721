"""The machine that we run on, as its system states it: the processor, and the cores and main memory
that this process may use, containers' limits counted. Nothing is measured."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ivl.errors import ConfigError

THREADS_PER_CORE = 4
LEAST_LIMIT = 16
"""More threads than four for each processor, or 16, are a mistake."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
_MEMORY_FILES = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
_NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2^63 where there is no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """What limits the number of threads."""

    allowed: int
    """Logical processors that the process may be scheduled on."""
    physical: int
    """Cores among them: two hyperthreads of one core share its arithmetic units."""
    quota: float | None
    """Processors' worth of time that a container may use; None: no limit."""

    @property
    def threads(self) -> int:
        """As many as there are cores, and no more than the quota keeps running; at least 1.

        A quota is rounded to the nearest: threads beyond it would be stopped in turns, and the
        others would wait for them.
        """
        limit = self.physical if self.quota is None else min(self.physical, round(self.quota))
        return max(1, limit)


def usable_cores() -> Cores:
    """What this process may use now."""
    if hasattr(os, "sched_getaffinity"):
        allowed: Collection[int] = os.sched_getaffinity(0)
    else:
        allowed = range(os.cpu_count() or 1)
    return Cores(
        allowed=len(allowed), physical=physical_cores(allowed, TOPOLOGY), quota=cpu_quota()
    )


def choose_threads(threads: int | None, name: str = "threads") -> int:
    """The number asked for, else that of `OMP_NUM_THREADS`, else one for each usable core.

    Raises ConfigError, which calls the number `name`, for less than one, and for so many that they
    would only stand in each other's way.
    """
    cores = usable_cores()
    most = max(LEAST_LIMIT, THREADS_PER_CORE * cores.allowed)
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
            raise ConfigError(
                f"{name} is {threads!r}.",
                f"Give 1 to {most} ({cores.allowed} processors are here), or leave it out.",
            )
        return threads
    wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(int(wish), most) if wish.isdigit() and int(wish) else cores.threads


def physical_cores(allowed: Collection[int], topology: Path) -> int:
    """How many cores the logical processors `allowed` belong to; each its own, when not known."""
    cores = set()
    for cpu in allowed:
        try:
            siblings = (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
        except OSError:
            siblings = f"{cpu}"
        cores.add(siblings.strip())
    return len(cores)


def cpu_quota(own_cgroup: Path = OWN_CGROUP, root: Path = CGROUPS) -> float | None:
    """The least quota of the process's control groups and all that are above them."""
    read = {2: _quota_v2, 1: _quota_v1}
    quotas = (read[version](group) for group, version in _groups("cpu", own_cgroup, root))
    return min((quota for quota in quotas if quota is not None), default=None)


def available_memory_bytes() -> int | None:
    """Host memory that a new program can use; a container's limit counts. None: unknown."""
    is_linux = sys.platform.startswith("linux")
    free = read_meminfo("MemAvailable") if is_linux else total_memory_bytes()
    limits = [limit - used for limit, used in memory_limits()]
    return min([max(0, room) for room in limits] + ([] if free is None else [free]), default=None)


def total_memory_bytes() -> int | None:
    """Main memory, or a container's share of it. None: unknown."""
    try:
        total: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        total = None
    limits = [limit for limit, _ in memory_limits()]
    return min(limits + ([] if total is None else [total]), default=None)


def memory_limits(own_cgroup: Path = OWN_CGROUP, root: Path = CGROUPS) -> list[tuple[int, int]]:
    """Limit and use, in bytes, of each control group of the process, or above it, with a limit.

    Cached pages of files that nobody has mapped lately are given back on demand, so they are no
    use (kernel: Documentation/admin-guide/cgroup-v2.rst, memory.stat inactive_file).
    """
    found = {}
    for folder, version in _groups("memory", own_cgroup, root):
        limit_file, used_file = _MEMORY_FILES[version]
        limit, used = _integer(folder / limit_file), _integer(folder / used_file)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            found[folder] = (limit, max(0, used - _inactive_files(folder)))
    return list(found.values())


def read_meminfo(name: str) -> int | None:
    """Bytes of one line of /proc/meminfo."""
    found = re.search(rf"^{name}:\s*(\d+) kB", _text(MEMINFO), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def processor_name() -> str:
    """As the processor calls itself."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _text(CPUINFO), re.MULTILINE)
    return names[0].strip() if names else platform.processor() or platform.machine()


def has_float16_products() -> bool:
    """Whether the processor multiplies float16 (AVX-512 FP16)."""
    return "avx512_fp16" in _features()


def has_bfloat16_tiles() -> bool:
    """Whether the processor multiplies whole tiles of bfloat16 (AMX)."""
    return "amx_bf16" in _features()


def has_bfloat16_products() -> bool:
    """Whether torch multiplies bfloat16 as fast as the processor can (`mkldnn_bf16_device_check` of
    its aten/src/ATen/native/mkldnn/Utils.h); True where the system does not say."""
    features = _features()
    return not features or "bf16" in features or {"avx512vl", "avx512bw", "avx512dq"} <= features


def _features() -> set[str]:
    """Instructions of the processor by Linux's names."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _text(CPUINFO), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _groups(controller: str, own_cgroup: Path, root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the process's control groups and of all above them, with their version.

    Versions 1 and 2 (`man 7 cgroups`; kernel: Documentation/admin-guide/cgroup-v2.rst). A container
    may see its own group as the root, whatever path the process is told: the root is looked at too.
    """
    for line in _text(own_cgroup).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, version = root, 2
        elif controller in controllers.split(","):
            joint = root / controllers
            top, version = joint if joint.is_dir() else root / controller, 1
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder == top or top in folder.parents:
                yield folder, version
    yield from ((root, 2), (root / controller, 1))


def _quota_v2(folder: Path) -> float | None:
    found = re.fullmatch(r"(\d+) (\d+)", _text(folder / "cpu.max"))  # or "max 100000": no limit
    return int(found[1]) / int(found[2]) if found else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_integer(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _inactive_files(folder: Path) -> int:
    """Version 1 has a total of the groups below as well."""
    found = re.search(
        r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE
    )
    return int(found[1]) if found else 0


def _integer(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _text(path: Path) -> str:
    """A file of the system's; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
