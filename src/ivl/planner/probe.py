"""What was measured on a machine, kept in a file so that plans need not measure again.

`ivl plan --probe` writes it (`ivl.evaluate.probe` measures). A record is of one processor: another
one's is not used.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`bandwidth` in bytes a second; the others in operations a second (two for each product and
    sum) that ivl's own kernels reach."""

    processor: str
    date: str
    threads: int
    bandwidth: float
    quantized_ops: float
    """Products of quantized matrices with many rows of activations: reading a prompt."""
    float_ops: float
    """Products of 16-bit matrices with many rows."""
    tower_ops: float
    """Products of the vision tower, in the arithmetic that it chooses here."""


def probe_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ivl" / "probe.json"


def read_probe(processor: str) -> Probe | None:
    """The record of this processor; None where there is none, or one that cannot be used."""
    try:
        record = json.loads(probe_path().read_text("utf-8"))
        probe = Probe(**{field.name: record[field.name] for field in fields(Probe)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return probe if probe.processor == processor else None


def write_probe(probe: Probe) -> Path:
    path = probe_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(probe), indent=1) + "\n", "utf-8")
    return path
