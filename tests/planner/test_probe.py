"""What was measured of a processor is kept, and used for that processor only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import ivl
from ivl.planner.machine import processor_name
from ivl.planner.probe import Probe, probe_path, read_probe, write_probe

PROBE = Probe(
    processor="Some processor",
    date="2026-01-01",
    threads=8,
    bandwidth=50e9,
    quantized_ops=1e12,
    float_ops=1e12,
    tower_ops=1e12,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_it_is_kept_for_its_processor() -> None:
    assert read_probe("Some processor") is None
    write_probe(PROBE)
    assert read_probe("Some processor") == PROBE
    assert read_probe("Another") is None
    probe_path().write_text("{")
    assert read_probe("Some processor") is None


def test_speeds_come_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, none: a bandwidth is never guessed. With it they grow with it."""
    monkeypatch.setattr("ivl.planner.machine.memory_bandwidth", lambda: None)
    unknown = ivl.plan("4b", device="cpu").plan.speed
    assert unknown.tokens_per_s.value is None
    assert "--probe" in unknown.tokens_per_s.source
    likely = []
    for bandwidth in (50e9, 100e9):
        write_probe(replace(PROBE, processor=processor_name(), bandwidth=bandwidth))
        speed = ivl.plan("4b", device="cpu").plan.speed
        assert speed.tokens_per_s.value is not None
        assert speed.tokens_per_s.confidence == "measured here"
        assert speed.tokens_per_s.value.high / speed.tokens_per_s.value.low <= 1.6
        assert speed.first_token_s.value is not None
        likely.append(speed.tokens_per_s.value.likely)
    assert 1.5 < likely[1] / likely[0] < 2
