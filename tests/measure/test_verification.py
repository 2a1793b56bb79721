"""Plans against a model that is really built: the demo's shapes, which are small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ivl
from ivl.api import choose_dtype
from ivl.errors import CapacityError, ConfigError, UnsupportedError
from ivl.measure.verification import measure_built, shortened, verify_plan
from ivl.model.build_random import random_planned_model
from ivl.model.decoder import Decoder
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


@pytest.mark.parametrize("type_name", ["Q4_K_M", "BF16"])
def test_what_is_measured_is_what_ask_runs(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs for single steps, the tower's usual arithmetic, the usual type."""
    config = find_subject("demo").config
    tensors = [*decoder_plan(config.decoder, type_name), *vision_plan(config, "F16")]
    plan = ivl.plan("demo", device="cpu", max_tiles=1, context=1024, kv="8bit").plan
    plan = replace(plan, subject=replace(plan.subject, tensors=tuple(tensors)))
    asked: list[object] = []
    monkeypatch.setattr(
        Decoder, "use_graphs", lambda self, context, capture=None: asked.append(context)
    )
    monkeypatch.setattr(
        "ivl.model.cpu_vision.use_arithmetic", lambda model, choice: asked.append((model, choice))
    )
    found = measure_built(plan)
    assert found["step_s"] > 0
    context, (model, choice) = asked  # type: ignore[misc]
    assert context == 1024
    assert choice == "auto"
    assert model.kv == "8bit"
    quantized = type_name != "BF16"
    assert model.dtype == choose_dtype(None, torch.device("cpu"), is_quantized=quantized)


@pytest.mark.parametrize("type_name", ["IQ4_XS", "IQ4_NL"])
def test_types_that_are_read_only_can_be_measured(type_name: str) -> None:
    config = find_subject("demo").config
    tensors = [*decoder_plan(config.decoder, type_name), *vision_plan(config, "F16")]
    model = random_planned_model(config, tensors)
    assert model.decoder.layers[0].attn.o.matrix.format == type_name  # type: ignore[union-attr]
    with torch.inference_mode():
        logits = model.logits(torch.arange(5), torch.zeros(5, dtype=torch.bool), None)
    assert torch.isfinite(logits).all()
