"""What the trainer computes faster is what the model computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training import network as network_module
from training.batches import GRID, IGNORE, PAD_MULTIPLE, Batch, cut, printed_patches
from training.demo_config import PATCH_PX, TILE_PX, demo_config
from training.muon import orthogonalise
from training.network import Network


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(1)
    return Network(demo_config(300))


def tiles(number: int) -> torch.Tensor:
    noise = np.random.default_rng(1).integers(0, 256, (number, TILE_PX, TILE_PX, 3))
    return torch.from_numpy(noise.astype(np.uint8))


def test_a_patch_with_a_dot_is_printed_and_the_rest_is_blank() -> None:
    page = torch.full((1, TILE_PX, TILE_PX, 3), 240, dtype=torch.uint8)
    page[0, 3 * PATCH_PX + 13, 5 * PATCH_PX, 1] = 100
    assert printed_patches(page)[0].nonzero().tolist() == [[3 * GRID + 5]]


def test_a_full_page_is_seen_the_same_when_blanks_are_skipped(network: Network) -> None:
    page = tiles(1)
    with torch.no_grad():
        skipping = network.see(page, GRID, skip_blanks=True)
        torch.testing.assert_close(skipping, network.see(page, GRID), rtol=1e-4, atol=1e-4)
        model = network.model.vision(network.model.normalize(page))
    torch.testing.assert_close(skipping.flatten(1, 2), model, rtol=1e-4, atol=1e-4)


def test_skipped_patches_change_as_the_kept_blank_ones_do(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "BLANKS_KEPT", 0)
    page = tiles(1)
    page[:, TILE_PX // 2 :] = 255
    with torch.no_grad():
        seen = network.see(page, GRID, skip_blanks=True).flatten(1, 2)
        embedded = network.model.vision.embed(network.model.normalize(page))[:, 1:]
    change = (seen - embedded)[0, GRID * GRID // 2 :]
    assert change.std(0).max() < 1e-5  # no blank patch was kept: they stay as they were
    assert (seen - embedded)[0, : GRID * GRID // 2].std(0).max() > 1e-3


def test_pieces_hold_every_page_once_and_all_of_its_answer() -> None:
    answers = torch.full((4, 3 * PAD_MULTIPLE), IGNORE)
    for row, length in enumerate((90, 3, 40, 60)):
        answers[row, :length] = torch.arange(length)
    patches = torch.zeros(4, GRID * GRID, 1, dtype=torch.int64)
    whole = Batch(
        tiles=tiles(4), ids=answers, labels=answers, image_start=0, patch_labels=patches,
        align=answers,
    )  # fmt: skip
    whole.tiles[1] = whole.tiles[2] = 255  # two blank pages go together
    pieces = cut(whole, 2)
    assert [len(piece.tiles) for piece in pieces] == [2, 2]
    assert pieces[0].labels.shape[1] == 2 * PAD_MULTIPLE
    assert rows(pieces) == rows([whole])


def rows(batches: list[Batch]) -> list[list[int]]:
    return sorted(row[row != IGNORE].tolist() for batch in batches for row in batch.labels)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonal_updates_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.5
    assert values.max() < 1.5
