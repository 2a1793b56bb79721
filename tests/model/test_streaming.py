"""Weights that pass through a device are there when they are computed with, and until then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ivl
from ivl.config import read_config
from ivl.model.streaming import NUM_SLOTS, StreamedLayers, Transfers
from ivl.model.vision import VisionTower
from tests.random_model import random_model

CONFIG = read_config(Path(ivl.__file__).parent / "assets" / "demo")


class LateTransfers(Transfers):
    """Copies as late as is allowed: when the slot is waited for. Whatever relies on a copy that was
    only begun computes with the weights of another layer."""

    def __init__(self) -> None:
        self.pending: dict[int, tuple[Sequence[Tensor], Sequence[Tensor]]] = {}
        self.in_use: set[int] = set()

    def fill(self, slot: int, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        assert slot not in self.in_use, "filled while a layer computes with it"
        assert slot not in self.pending, "filled twice"
        self.pending[slot] = (targets, sources)

    def wait(self, slot: int) -> None:
        targets, sources = self.pending.pop(slot)
        super().fill(slot, targets, sources)
        self.in_use.add(slot)

    def release(self, slot: int) -> None:
        self.in_use.remove(slot)


@pytest.fixture
def tower() -> VisionTower:
    tower = random_model(CONFIG, dtype=torch.float32).vision
    assert isinstance(tower, VisionTower)
    return tower


@pytest.mark.parametrize("transfers", [Transfers, LateTransfers])
def test_a_streamed_tower_computes_what_a_resident_one_does(
    tower: VisionTower, transfers: type[Transfers]
) -> None:
    px = CONFIG.tile_px
    chunks = [torch.randn(n, 3, px, px) for n in (2, 1)]
    expected = [tower(chunk) for chunk in chunks]
    tower.streamed = StreamedLayers(tower.layers, torch.device("cpu"), transfers())
    for _ in range(2):  # the second page begins where the first one ended
        for found, wanted in zip(tower.encode(chunks), expected, strict=True):
            assert torch.equal(found, wanted)


def test_two_layers_lie_on_the_device_and_none_of_them_is_a_parameter(tower: VisionTower) -> None:
    names = {name for name, _ in tower.named_parameters()}
    tower.stream_to(torch.device("cpu"))
    layer = sum(p.nbytes for p in tower.layers[0].parameters())
    assert tower.streamed is not None
    assert tower.streamed.num_bytes == NUM_SLOTS * layer
    assert {name for name, _ in tower.named_parameters()} == names
