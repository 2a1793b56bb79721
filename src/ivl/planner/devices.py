"""How much memory this machine can still give, containers' limits counted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ivl.planner.threads import CGROUPS, OWN_CGROUP

MEMINFO = Path("/proc/meminfo")
_FILES = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
_NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2^63 where there is no limit."""


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
    for folder, version in _groups(own_cgroup, root):
        limit_file, used_file = _FILES[version]
        limit, used = _integer(folder / limit_file), _integer(folder / used_file)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            found[folder] = (limit, max(0, used - _inactive_files(folder)))
    return list(found.values())


def read_meminfo(name: str) -> int | None:
    """Bytes of one line of /proc/meminfo."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


def _groups(own_cgroup: Path, root: Path) -> list[tuple[Path, int]]:
    """The folders of the process's memory groups, innermost first, with their version."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        lines = []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, version = root, 2
        elif "memory" in controllers.split(","):
            top, version = root / "memory", 1
        else:
            continue
        group = top / path.strip("/")
        inside = [f for f in (group, *group.parents) if f == top or top in f.parents]
        folders += [(folder, version) for folder in inside]
    # A container may see its own group as the root, whatever path it is told.
    return [*folders, (root, 2), (root / "memory", 1)]


def _inactive_files(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
