"""A converted pair, loaded again, computes what its checkpoint computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ivl.api import load
from ivl.cli.main import run


@pytest.mark.parametrize("which", ["tiny_model_dir", "internlm_dir"])
def test_logits_of_the_pair_are_those_of_the_checkpoint(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Qwen2 with the 300M kind of tower, InternLM2 with the 6B kind; float32."""
    directory = request.getfixturevalue(which)
    arguments = ["convert", str(directory), str(tmp_path), "--type", "F32", "--vision", "F32"]
    assert run([*arguments, "--name", "model", "-q"]) == 0
    original = load(directory, dtype="float32")
    converted = load(tmp_path / "model-F32.gguf", dtype="float32")
    px = original.config.tile_px
    generator = torch.Generator().manual_seed(1)
    tiles = torch.randint(0, 256, (2, px, px, 3), generator=generator).to(torch.uint8)
    features = original.encode_tiles(tiles)
    assert (converted.encode_tiles(tiles) - features).abs().max() < 1e-3
    place = original.engine.tokenizer.control("<IMG_CONTEXT>")
    words = original.engine.tokenizer.encode_text("What is the total?")
    ids = [*words, *[place] * features.shape[0] * features.shape[1], *words]
    expected = original.logits(ids, features)
    found = converted.logits(ids, converted.encode_tiles(tiles))
    assert (found - expected).abs().max() < 1e-3
    assert expected.std() > 0.01


def test_a_quantized_demo_still_reads(tmp_path: Path) -> None:
    """The first words of a sample, which the model is sure of."""
    assert run(["convert", "demo", str(tmp_path), "--type", "Q8_0", "--vision", "Q8_0", "-q"]) == 0
    sample = Path(__file__).parents[2] / "samples" / "tag.png"
    answers = [
        load(model, dtype="float32").read(sample, max_tokens=12).text
        for model in ("demo", tmp_path / "demo-Q8_0.gguf")
    ]
    assert answers[0] == answers[1]
