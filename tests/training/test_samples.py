"""The pages in samples/ are what the generator makes, and their answers are true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.installed_fonts import skip_without_fonts

skip_without_fonts("eval")

from training.samples import SAMPLES, Sample, is_extraction, sample_page  # noqa: E402

FOLDER = Path(__file__).parents[2] / "samples"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_sample_is_what_the_generator_makes(sample: Sample) -> None:
    page = sample_page(sample)
    with Image.open(FOLDER / f"{sample.name}.png") as image:
        assert image.size == page.image.size
        # FreeType may draw a grey a little differently from release to release.
        drawn, kept = (np.asarray(i.convert("L")).astype(int) for i in (page.image, image))
        assert np.abs(drawn - kept).mean() < 2
    assert (FOLDER / f"{sample.name}.txt").read_text(encoding="utf-8") == page.text + "\n"


def test_the_answers_stand_on_the_pages() -> None:
    answers = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))
    assert set(answers) == {sample.name for sample in SAMPLES}
    objects = 0
    for name, asked in answers.items():
        text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
        for question, answer in asked.items():
            if is_extraction(question):
                objects += 1
                values = [v for key, v in json.loads(answer).items() if "number" not in key]
                assert all(value is None or value in text for value in values)
            elif "kind" not in question and question != "What is this?" and "many" not in question:
                assert answer == "not stated" or answer in text
    assert objects >= 3
