"""InternLM2 sizes at their true widths: a GGUF pair beside the checkpoint that it was made of.

Written, converted and computed with, 26B's layers take 8 GB of memory and 10 GB of disk for some
minutes, so these tests run where IVL_TRUE_SHAPES is set:

IVL_TRUE_SHAPES=1 pytest tests/interoperability/test_true_shapes.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ivl.cli.main import run

# Read when the module is: the fixture that isolates tests hides the variables of the user.
pytestmark = pytest.mark.skipif(
    not os.environ.get("IVL_TRUE_SHAPES"), reason="IVL_TRUE_SHAPES is not set"
)


@pytest.mark.parametrize(("size", "num_layers"), [("2b", 3), ("26b", 1)])
def test_a_pair_gives_the_logits_of_its_safetensors(
    size: str,
    num_layers: int,
    true_shape: Callable[[str, int], Path],
    outputs: Callable[..., Any],
    assert_same: Callable[[Any, Any], None],
    tmp_path: Path,
) -> None:
    directory = true_shape(size, num_layers)
    pair = tmp_path / "pair"
    # The kernels for 16 bits round activations too: F32 shows that the weights are in their places.
    kinds = ["--type", "F32", "--vision", "F32"]
    assert run(["convert", str(directory), str(pair), *kinds, "-q"]) == 0
    assert_same(outputs(pair), outputs(directory))
