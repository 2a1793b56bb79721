"""Data is shown to a model in the prompt that it is asked with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ivl.calibrate.samples import Sample as CalibrationSample
from ivl.calibrate.sequences import make_sequences
from ivl.engine.forced import tokenize_samples
from ivl.evaluate.data import Sample
from ivl.prompt.template import user_message

SYSTEM = "Only numbers, please."


def test_a_models_own_system_text_is_in_every_prompt(model: Any) -> None:
    """That of a GGUF file is a part of its metadata, and `ivl ask` shows it."""
    config, tokenizer = replace(model.config, system=SYSTEM), model.engine.tokenizer
    sample = Sample(name="one", question="How many?", answer="Five")
    [forced] = tokenize_samples([sample], config, tokenizer, context=256)
    assert SYSTEM in tokenizer.decode(forced.prompt_ids)
    talk = CalibrationSample(name="one", messages=(user_message("How many?"),))
    [calibrated] = make_sequences([talk], config, tokenizer, max_tokens=256)
    assert SYSTEM in tokenizer.decode(calibrated.prompt.ids)
