"""What bench.gpu says without a card, and the limits that it compares with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.gpu import Row, absent, decode_rate, planned, table, tower_operations
from ivl.planner.plan import Plan


def test_without_a_card_every_table_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--write"])
    page = tmp_path / "gpu.md"
    page.write_text(gpu.DOCS.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(gpu, "DOCS", page)
    gpu.main()
    shown = capsys.readouterr().out
    for name in gpu.TABLES:
        assert table(absent(name)) in shown
        assert table(absent(name)) in page.read_text("utf-8")


def test_a_token_reads_all_weights_but_the_embeddings() -> None:
    """78B at Q4_K_M: 72.7 billion weights in layers and head, at 4.8 to 5.3 bits."""
    found = planned("78b", "Q4_K_M")
    read = sum(found.parts.layers) + found.parts.head
    assert 42e9 < read < 49e9
    assert found.fits


def test_the_operations_of_internvit_6b() -> None:
    """5.54 billion parameters in its layers; a tile is 1025 positions."""
    config = planned("78b", "Q4_K_M").subject.config
    least = 2 * 5.5e9 * 1025
    assert least < tower_operations(config) < 1.15 * least


def test_fewer_layers_leave_the_tower_whole() -> None:
    plans: list[Plan] = [planned("78b", "BF16", layers) for layers in (1, 2)]
    assert plans[0].parts.vision == plans[1].parts.vision
    assert [len(p.parts.layers) for p in plans] == [1, 2]


def test_a_table_has_a_row_for_each_figure() -> None:
    row = Row(work="writing", found="20.0 tokens/s", limit="25.0", ratio=0.8, asked=0.75)
    assert table([row]).splitlines()[-1] == "| writing | 20.0 tokens/s | 25.0 | 0.80 | 0.75 |"


def test_several_sequences_write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.model.test_cache import CONFIG
    from tests.random_model import random_model

    def run_once(run: object) -> float:
        run()  # type: ignore[operator]
        return 2.0

    monkeypatch.setattr(gpu, "seconds", run_once)
    model = random_model(CONFIG, dtype=torch.float32)
    assert decode_rate(model, 3) == 3 * gpu.STEPS / 2.0
