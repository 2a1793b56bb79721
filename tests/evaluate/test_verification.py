"""Plans against a model that is really built: the demo's shapes, which are small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ivl
from ivl.errors import CapacityError, ConfigError, UnsupportedError
from ivl.evaluate.verification import shortened, verify_plan
from ivl.model.build_random import random_planned_model
from ivl.planner.machine import with_memory
from ivl.planner.plan import Plan, make_plan
from ivl.planner.tensors import decoder_plan, vision_plan
from ivl.planning import find_subject

GIB = 1024**3


def test_the_demo_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify_plan(ivl.plan("demo", max_tiles=1, images=1).plan)
    assert found.layers_built == found.layers
    assert found.peak_bytes > 0
    assert found.tokens_per_s > 0
    assert found.record()["planned_bytes"] == found.planned_bytes
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


@pytest.mark.parametrize("type_name", ["Q4_K_M", "Q8_0", "BF16"])
def test_random_models_have_the_planned_types(type_name: str) -> None:
    """Every matrix in the format that the plan gives it, and it runs."""
    config = find_subject("demo").config
    tensors = [*decoder_plan(config.decoder, type_name), *vision_plan(config, "F16")]
    dtype = torch.bfloat16 if type_name == "BF16" else torch.float32
    model = random_planned_model(config, tensors, dtype=dtype)
    with torch.inference_mode():
        ids = torch.arange(5)
        logits = model.logits(ids, torch.zeros(5, dtype=torch.bool), None)
    assert torch.isfinite(logits).all()
    if type_name != "BF16":
        planned = {t.name: t.format for t in tensors}
        head = model.decoder.lm_head
        assert head.matrix.format == planned.get("output.weight", planned["token_embd.weight"])
