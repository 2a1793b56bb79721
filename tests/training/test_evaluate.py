"""The bundled model reads pages that its training never saw about as well as docs/demo.md says.

Twelve pages; `python -m training.evaluate` measures it on 200.
"""

from __future__ import annotations

import pytest

import ivl
from ivl.errors import ConfigError
from ivl.evaluate.metrics import edit_distance

fonts = pytest.importorskip("training.fonts", reason="training/ is not in the installed package")
try:
    fonts.faces("train")
except ConfigError as error:
    pytest.skip(f"the fonts are not installed: {error.message}", allow_module_level=True)

from training.curriculum import DEMO_MAX_LINES  # noqa: E402
from training.evaluate import evaluation_page  # noqa: E402

NUM_PAGES = 12
MAX_ERROR_RATE = 0.2


def test_the_bundled_model_reads_most_of_the_letters() -> None:
    demo = ivl.load("demo", device="cpu", dtype="float32")
    pages = [evaluation_page(index, max_lines=DEMO_MAX_LINES) for index in range(NUM_PAGES)]
    errors = [edit_distance(p.text, demo.read(p.image, max_tokens=400).text) for p in pages]
    assert sum(errors) <= MAX_ERROR_RATE * sum(len(p.text) for p in pages)
