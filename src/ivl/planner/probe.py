"""What was measured on a machine, kept in a file so that plans need not measure again.

`ivl plan --probe` writes all of it (`ivl.measure.speed` measures), `ivl info --machine` the
bandwidth that it shows. A record is of one processor: another one's is not used.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from pathlib import Path

BY_PROBE, BY_INFO = "ivl plan --probe", "ivl info --machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`bandwidth` in bytes a second, measured on `date` by the command `by`; the others in
    operations a second (two for each product and sum) that ivl's own kernels reach, None where only
    the bandwidth was measured."""

    processor: str
    date: str
    threads: int
    bandwidth: float
    quantized_ops: float | None = None
    """Products of quantized matrices with many rows of activations: reading a prompt."""
    float_ops: float | None = None
    """Products of 16-bit matrices with many rows."""
    tower_ops: float | None = None
    """Products of the vision tower, in the arithmetic that it chooses here."""
    by: str = BY_PROBE


def probe_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ivl" / "probe.json"


def read_probe(processor: str) -> Probe | None:
    """The record of this processor; None where there is none, or one that cannot be used."""
    try:
        record = json.loads(probe_path().read_text("utf-8"))
        known = {field.name for field in fields(Probe)}
        probe = Probe(**{name: value for name, value in record.items() if name in known})
        if probe.processor != processor or not probe.bandwidth > 0:
            return None
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return probe


def write_probe(probe: Probe) -> Path:
    path = probe_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(probe), indent=1) + "\n", "utf-8")
    return path


def keep_bandwidth(processor: str, bandwidth: float, *, threads: int, by: str = BY_INFO) -> Path:
    """Puts a newly measured bandwidth, in bytes a second, into the record; what else was measured
    of this processor stays. OSError where it cannot be written."""
    known = read_probe(processor)
    today = date.today().isoformat()
    if known is None:
        known = Probe(processor=processor, date=today, threads=threads, bandwidth=bandwidth, by=by)
    return write_probe(replace(known, date=today, threads=threads, bandwidth=bandwidth, by=by))
