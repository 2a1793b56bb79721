"""Steps that are recorded once and replayed. What is recorded is run again by a plain call here; on
a GPU it is a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux only")

from ivl.kernels import dispatch
from ivl.kv import BLOCK_TOKENS
from ivl.model.cache import KVCache, Segment
from ivl.model.graphs import SIZES
from ivl.model.internvl import InternVL
from tests.model.test_cache import CONFIG
from tests.random_model import random_model

CONTEXT = 4 * BLOCK_TOKENS


class Recorder:
    """Counts what is recorded and what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        run()  # a warm-up writes to the cache, as the real one does

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> InternVL:
    monkeypatch.setattr(dispatch, "runs_triton", lambda device: True)
    return random_model(CONFIG, dtype=torch.float32)


def caches_of(model: InternVL, count: int) -> list[KVCache]:
    """Sequences of several lengths, in blocks that are no neighbours."""
    store = model.new_store(4 * count)
    caches = [KVCache(store, range(i, 4 * count, count)) for i in range(count)]
    lengths = [3 + 7 * i for i in range(count)]
    x = model.decoder.embed(torch.arange(sum(lengths)) % CONFIG.decoder.vocab_size)
    model.decoder.extend(x, [Segment(c, n) for c, n in zip(caches, lengths, strict=True)])
    return caches


def steps(model: InternVL, caches: list[KVCache], num_steps: int = 3) -> torch.Tensor:
    logits = []
    for number in range(num_steps):
        ids = torch.arange(len(caches)) + 5 * number
        segments = [Segment(cache, 1) for cache in caches]
        logits.append(model.extend(model.decoder.embed(ids), segments, [1] * len(caches)).clone())
    return torch.cat(logits)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_replayed_steps_are_the_steps(model: InternVL, count: int) -> None:
    expected = steps(model, caches_of(model, count))
    recorder = Recorder()
    assert model.decoder.use_graphs(CONTEXT, recorder)
    caches = caches_of(model, count)
    assert recorder.recorded == 0  # prompts are read without
    found = steps(model, caches)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_a_number_of_sequences_shares_the_graph_of_the_next_size(model: InternVL) -> None:
    recorder = Recorder()
    assert model.decoder.use_graphs(CONTEXT, recorder)
    caches = caches_of(model, 4)
    for count in (3, 4, 3, 1):
        steps(model, caches[:count], 1)
    assert recorder.recorded == 2  # for four and for one
    steps(model, caches_of(model, 1), 1)
    assert recorder.recorded == 3  # another store lies elsewhere


def test_what_no_graph_is_made_for_runs_without_one(model: InternVL) -> None:
    recorder = Recorder()
    assert model.decoder.use_graphs(CONTEXT, recorder)
    graphs = model.decoder.graphs
    assert graphs is not None
    [cache] = caches_of(model, 1)
    assert graphs.takes([Segment(cache, 1)] * SIZES[-1])
    assert not graphs.takes([Segment(cache, 1)] * (SIZES[-1] + 1))
    assert not graphs.takes([Segment(cache, 2)])
    cache.length = CONTEXT
    assert not graphs.takes([Segment(cache, 1)])


def test_a_processor_has_no_graphs() -> None:
    plain = random_model(CONFIG, dtype=torch.float32)
    assert not plain.decoder.use_graphs(CONTEXT)
    assert plain.decoder.graphs is None
