"""How much memory this machine can still give."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def available_memory_bytes() -> int | None:
    """Host memory that a new program can use; a container's limit counts. None: unknown."""
    free = _linux_available() if sys.platform.startswith("linux") else _total_memory()
    for limit_file, used_file in CGROUP_LIMITS:
        limit, used = _read_integer(limit_file), _read_integer(used_file)
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used)) if free is not None else max(0, limit - used)
    return free


def _linux_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _read_integer(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
