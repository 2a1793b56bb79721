"""Data is shown to a model in the prompt that it is asked with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ivl.checkpoint.hub import DEMO
from ivl.config import read_config
from ivl.errors import RequestError
from ivl.measure.data import Sample, calibration_samples, read_data, tokenize_samples
from ivl.model.source import check_tokenizer

SYSTEM = "Only numbers, please."


def test_a_models_own_system_text_is_in_every_prompt(tiny_model_dir: Path) -> None:
    """That of a GGUF file is a part of its metadata, and `ivl ask` shows it."""
    config = replace(read_config(tiny_model_dir), system=SYSTEM)
    tokenizer = check_tokenizer(config, tiny_model_dir)
    sample = Sample.asking("one", "How many?", answer="Five")
    [forced] = tokenize_samples([sample], config, tokenizer, context=256)
    assert SYSTEM in tokenizer.decode(forced.prompt_ids)
    [calibrated] = calibration_samples([sample], config, tokenizer, max_tokens=256)
    assert SYSTEM in tokenizer.decode(calibrated.prompt_ids)
    assert calibrated.whole == forced.whole


def test_what_is_calibrated_with_is_shortened(tmp_path: Path) -> None:
    config = read_config(DEMO)
    tokenizer = check_tokenizer(config, DEMO)
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("what a.png says\n")
    (tmp_path / "long.txt").write_text("abc " * 100)
    page = read_data([tmp_path / "a.png"])
    [whole] = calibration_samples(page, config, tokenizer)
    assert sum(whole.is_image) == config.tokens_per_tile
    assert tokenizer.decode(whole.whole.ids).count("what a.png says") == 1
    most = len(whole.whole) - 4
    [short] = calibration_samples(page, config, tokenizer, max_tokens=most)
    assert short.whole.ids == whole.whole.ids[:most]
    with pytest.raises(RequestError, match="images alone"):
        calibration_samples(page, config, tokenizer, max_tokens=32)
    text = read_data([tmp_path / "long.txt"])
    parts = calibration_samples(text, config, tokenizer, max_tokens=64)
    assert len(parts) > 1
    assert all(len(part.whole) <= 64 for part in parts)
