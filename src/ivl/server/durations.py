"""Lengths of time as Ollama's clients write them: `5m`, `1h30m`, `0`, `-1`, 300.

Source: Go's `time.ParseDuration`, which Ollama uses; a plain number is seconds.
"""

from __future__ import annotations

import math
import re

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(rf"[+-]?(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def parse_duration(given: float | str) -> float:
    """Seconds, which may be negative; ValueError for what is no length of time."""
    if isinstance(given, int | float) and math.isfinite(given):
        return float(given)
    text = str(given).strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:50]!r} is no length of time: 5m, 1h30m, 300 (seconds), 0, or -1")
    seconds = sum(float(number) * SECONDS[unit] for number, unit in _PART.findall(text))
    return -seconds if text.startswith("-") else seconds
