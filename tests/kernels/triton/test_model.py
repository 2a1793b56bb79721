"""A whole model over the kernels for GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ivl.cli.main import run
from ivl.kernels import dispatch
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.model.source import open_source

pytest.importorskip("triton", reason="Triton is there on Linux only")

from ivl.kernels.triton.matrix import TritonMatrix

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_a_pair_computes_the_same_as_by_the_reference(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["convert", str(tiny_model_dir), str(tmp_path), "--type", "Q8_0", "-q"]) == 0
    monkeypatch.setenv("IVL_ISA", "reference")
    source = open_source(tmp_path)
    ids = torch.tensor([70, 71, 90, 72])
    nowhere = torch.zeros(4, dtype=torch.bool)
    expected = source.build(dtype=torch.float32).logits(ids, nowhere, None)
    monkeypatch.setattr(dispatch, "runs_triton", lambda device: True)
    model = source.build(dtype=torch.float32, device=DEVICE)
    assert isinstance(model.decoder.embed, QuantizedEmbedding)
    assert isinstance(model.decoder.embed.matrix, TritonMatrix)
    down = model.decoder.layers[0].ffn.down
    assert isinstance(down, QuantizedLinear)
    assert isinstance(down.matrix, TritonMatrix)
    found = model.logits(ids.to(DEVICE), nowhere.to(DEVICE), None)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
