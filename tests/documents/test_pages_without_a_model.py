"""Pages that need no model, in a row: none of those behind them is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import ivl
from ivl.api import Model


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Model:
    return ivl.load(tiny_model_dir)


@pytest.mark.parametrize("jobs", [1, 2, None])
def test_pages_behind_many_blank_ones_are_read(model: Model, jobs: int | None) -> None:
    printed = Image.new("RGB", (300, 400), "white")
    ImageDraw.Draw(printed).text((40, 60), "SALE", fill="black", font_size=80)
    pages = [Image.new("RGB", (300, 400), "white")] * 20 + [printed]
    results = list(ivl.read(pages, model=model, jobs=jobs, max_tokens=2, rotate=False))
    assert [result.status for result in results[:20]] == ["blank"] * 20
    assert len(results) == 21
    assert results[20].answer is not None
