"""Pairs that llama.cpp's own converter writes, beside the safetensors that they were made of.

Runs where IVL_LLAMA_CPP_SOURCE names a checkout of llama.cpp, and IVL_LLAMA_CPP_PYTHON an
interpreter that its convert_hf_to_gguf.py runs in (docs/gguf.md).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ivl.model.source import open_source

# Read when the module is: the fixture that isolates tests hides the variables of the user.
SCRIPT = Path(os.environ.get("IVL_LLAMA_CPP_SOURCE") or "/nowhere") / "convert_hf_to_gguf.py"
PYTHON = os.environ.get("IVL_LLAMA_CPP_PYTHON") or ""

pytestmark = pytest.mark.skipif(
    not (PYTHON and SCRIPT.is_file()),
    reason="IVL_LLAMA_CPP_SOURCE and IVL_LLAMA_CPP_PYTHON name no converter",
)


def convert(directory: Path, out: Path, *options: str) -> None:
    command = [PYTHON, str(SCRIPT), str(directory), "--outtype", "f32", "--outfile", str(out)]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_pair_of_the_1b_shape_gives_the_logits_of_its_safetensors(
    true_shape: Callable[[str, int], Path],
    outputs: Callable[..., Any],
    assert_same: Callable[[Any, Any], None],
    tmp_path: Path,
) -> None:
    # With fewer than four layers the converter finds no name for the projector's `mlp1.3`.
    directory = true_shape("1b", 4)
    pair = tmp_path / "pair"
    pair.mkdir()
    convert(directory, pair / "text.gguf")
    convert(directory, pair / "vision.gguf", "--mmproj")
    theirs, ours = open_source(pair), open_source(directory)
    for part in ("decoder", "vision", "template", "max_tiles", "min_tiles", "downsample_ratio"):
        assert getattr(theirs.config, part) == getattr(ours.config, part)
    assert theirs.tokenizer().controls == ours.tokenizer().controls
    sentence = "What's the total of receipt 3? 合計 é 👍🏽 1,234.56\n\n <|im_end|>"
    assert theirs.tokenizer().encode_text(sentence) == ours.tokenizer().encode_text(sentence)
    assert_same(outputs(pair), outputs(directory))
