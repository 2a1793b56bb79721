"""A model that is built of random weights to be measured: the demo's shapes, which are small."""

from __future__ import annotations

import pytest
import torch

import ivl
from ivl.footprint.tensors import decoder_plan, vision_plan
from ivl.loading import choose_dtype
from ivl.measure.verification import measure_built
from ivl.model.build import PlannedSource
from ivl.model.decoder import Decoder
from ivl.planner.planning import find_subject


@pytest.mark.parametrize("type_name", ["Q4_K_M", "Q8_0", "BF16"])
def test_random_models_have_the_planned_types(type_name: str) -> None:
    """Every matrix in the format that the plan gives it, and it runs."""
    config = find_subject("demo").config
    tensors = [*decoder_plan(config.decoder, type_name), *vision_plan(config, "F16")]
    dtype = torch.bfloat16 if type_name == "BF16" else torch.float32
    model = PlannedSource(config, tensors).build(dtype=dtype)
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
    asked: list[object] = []
    monkeypatch.setattr(
        Decoder, "use_graphs", lambda self, context, capture=None: asked.append(context)
    )
    monkeypatch.setattr(
        "ivl.model.source.use_arithmetic", lambda model, choice: asked.append((model, choice))
    )
    found = measure_built(config, tensors, plan.setting.work, plan.placement)
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
    model = PlannedSource(config, tensors).build()
    assert model.decoder.layers[0].attn.o.matrix.format == type_name  # type: ignore[union-attr]
    with torch.inference_mode():
        logits = model.logits(torch.arange(5), torch.zeros(5, dtype=torch.bool), None)
    assert torch.isfinite(logits).all()
