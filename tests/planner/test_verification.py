"""Plans against a model that is really built: the demo's shapes, which are small."""

from __future__ import annotations

from dataclasses import replace

import pytest

import ivl
from ivl.errors import CapacityError, ConfigError, UnsupportedError
from ivl.planner.machine import with_memory
from ivl.planner.plan import Plan, make_plan
from ivl.planner.verification import shortened, verify_plan


def test_the_demo_measured() -> None:
    found = verify_plan(ivl.plan("demo", max_tiles=1, images=1).plan)
    assert found.layers_built == found.layers
    assert found.peak_bytes > 0
    assert found.tokens_per_s > 0
    assert found.to_dict()["planned_bytes"] == found.planned_bytes
    assert "planned" in str(found)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="Another machine"):
        verify_plan(ivl.plan("1b", device="a6000").plan)
    with pytest.raises(UnsupportedError, match=r"llama.cpp"):
        verify_plan(ivl.plan("1b", device="cpu", backend="llama.cpp").plan)


def limited(model: str, memory: str) -> Plan:
    plan = ivl.plan(model, device="cpu").plan
    return make_plan(plan.subject, plan.setting, with_memory(plan.machine, memory))


def test_as_many_layers_as_fit() -> None:
    plan = limited("8b", "4GB")
    assert not plan.fits
    built = shortened(plan)
    assert built.fits
    config = built.subject.config
    assert 1 <= config.decoder.num_layers < 32
    one_more = replace(config.decoder, num_layers=config.decoder.num_layers + 1)
    subject = replace(built.subject, config=replace(config, decoder=one_more))
    assert not make_plan(subject, built.setting, built.machine).fits
    with pytest.raises(CapacityError):
        shortened(limited("78b", "1GB"))
