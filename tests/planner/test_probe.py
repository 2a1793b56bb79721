"""What was measured of a processor is kept, and used for that processor only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ivl
from ivl.planner.machine import (
    Probe,
    keep_bandwidth,
    probe_path,
    processor_name,
    read_probe,
    write_probe,
)

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


def test_a_new_bandwidth_leaves_the_rest_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivl.planner.machine.memory_bandwidth", lambda: None)
    keep_bandwidth(processor_name(), 40e9, threads=2)
    first = ivl.plan("4b", device="cpu").plan
    assert first.machine.host is not None
    assert first.machine.host.device.bandwidth == 40e9
    assert "ivl info --machine" in first.speed.tokens_per_s.source
    assert first.speed.tokens_per_s.confidence == "measured here"
    assert first.speed.first_token_s.value is None  # nobody measured what that takes
    write_probe(replace(PROBE, processor=processor_name()))
    keep_bandwidth(processor_name(), 60e9, threads=2)
    second = ivl.plan("4b", device="cpu").plan.speed
    assert second.first_token_s.value is not None
    probe = read_probe(processor_name())
    assert probe is not None
    assert (probe.bandwidth, probe.tower_ops) == (60e9, PROBE.tower_ops)


def test_a_record_of_before_is_still_read() -> None:
    """As versions without `by` wrote it; and one that says nonsense is not."""
    probe_path().parent.mkdir(parents=True, exist_ok=True)
    record = {
        "processor": "Some processor", "date": "2026-01-01", "threads": 8, "bandwidth": 5e10,
        "quantized_ops": 1e12, "float_ops": 1e12, "tower_ops": 1e12,
    }  # fmt: skip
    probe_path().write_text(json.dumps(record))
    assert read_probe("Some processor") == replace(PROBE, bandwidth=5e10)
    for broken in ({**record, "bandwidth": "fast"}, {**record, "bandwidth": 0}, [], {}):
        probe_path().write_text(json.dumps(broken))
        assert read_probe("Some processor") is None
