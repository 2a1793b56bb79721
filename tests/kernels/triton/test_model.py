"""A whole model over the kernels for GPUs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ivl.cli.main import run
from ivl.kernels import dispatch
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.kv import KV_TYPES, KVType
from ivl.model.cache import KVCache, Segment
from ivl.model.source import open_source
from tests.model.test_cache import CONFIG
from tests.random_model import random_model

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


@pytest.mark.parametrize("kv", KV_TYPES)
def test_writing_over_the_paged_cache_is_writing_by_the_plain_layers(
    kv: KVType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several sequences at once, one of which guesses ahead; blocks that are no neighbours."""
    plain = random_model(CONFIG, dtype=torch.float32)
    model = copy.deepcopy(plain).to(DEVICE)
    found = []
    for network, triton in ((plain, False), (model, True)):
        monkeypatch.setattr(dispatch, "runs_triton", lambda device, on=triton: on)
        store = network.new_store(8, kv)
        caches = [KVCache(store, blocks) for blocks in ([5, 0, 3], [1], [7, 2])]
        logits = []
        for lengths in ((20, 3, 16), (1, 1, 4), (1, 1, 1)):
            segments = [Segment(c, n) for c, n in zip(caches, lengths, strict=True)]
            ids = torch.arange(sum(lengths), device=network.device) % CONFIG.decoder.vocab_size
            x = network.decoder.embed(ids)
            logits.append(network.extend(x, segments, lengths).cpu())
        found.append(torch.cat(logits))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
