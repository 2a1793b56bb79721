"""How many threads are worth running here: the cores that this process may really use."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ivl.errors import ConfigError

THREADS_PER_CORE = 4
LEAST_LIMIT = 16
"""More threads than four for each processor, or 16, are a mistake."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


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
    """The least quota of the process's control groups and all that are above them.

    Versions 1 and 2 (`man 7 cgroups`; kernel: Documentation/admin-guide/cgroup-v2.rst). A container
    may see its own group as the root, whatever path the process is told: the root is looked at too.
    """
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            top, read = _v1_folder(root, controllers), _quota_v1
        else:
            continue
        group = top / path.strip("/")
        quotas += [read(folder) for folder in (group, *group.parents) if _is_within(folder, top)]
    known = [quota for quota in quotas if quota is not None]
    return min(known, default=None)


def _is_within(folder: Path, top: Path) -> bool:
    return folder == top or top in folder.parents


def _v1_folder(root: Path, controllers: str) -> Path:
    joint = root / controllers
    return joint if joint.is_dir() else root / "cpu"


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None
