"""The bench's own way to let a model read many pages at once, and where its tables go."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bench.fidelity import fill, read_together, table
from ivl import api
from ivl.measure.data import Sample, tokenize_samples
from ivl.measure.fidelity import longest_answer


def test_pages_that_are_read_together_are_read_as_each_alone(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = api.load(tiny_model_dir, device="cpu", dtype="float32")
    samples = []
    for seed in range(3):
        image = Image.effect_noise((56, 56), 30 * (seed + 1))
        image.save(tmp_path / f"{seed}.png")
        samples.append(Sample.asking(str(seed), "Read.", tmp_path / f"{seed}.png", answer="abc"))
    engine = model.engine
    pages = list(tokenize_samples(samples, engine.config, engine.tokenizer, context=engine.context))
    together = read_together(engine, pages)
    alone = [model.ask(list(s.images), "Read.", max_tokens=longest_answer(4)).text for s in samples]
    assert together == alone
    assert len(set(together)) == 3


def test_a_table_takes_the_place_of_the_last_one() -> None:
    page = "before\n<!-- table: vision -->\nold\n<!-- end -->\nafter"
    new = table(("type", "MB", "verdict"), [("Q8_0", "3.1", "good")])
    filled = fill(page, "vision", new)
    assert "old" not in filled
    assert "| Q8_0 | 3.1 | good |" in filled
    assert fill(filled, "vision", new) == filled
    with pytest.raises(SystemExit, match="no place"):
        fill(page, "decoder", new)
