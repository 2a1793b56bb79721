"""What the trainer computes faster is what the model computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ivl.prompt.tiles import Grid
from training import network as network_module
from training.batches import IGNORE, PAD_MULTIPLE, Batch, cut, make_batch
from training.demo_config import TILE_PX, demo_config
from training.muon import orthogonalise
from training.network import Network
from training.pages import Page
from training.prompts import Prompts
from training.questions import Question
from training.tiles import GRID


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(1)
    return Network(demo_config(Prompts().vocab_size))


def tiles(number: int) -> torch.Tensor:
    noise = np.random.default_rng(1).integers(0, 256, (number, TILE_PX, TILE_PX, 3))
    return torch.from_numpy(noise.astype(np.uint8))


def test_a_full_page_is_seen_the_same_when_blanks_are_skipped(network: Network) -> None:
    page = tiles(1)
    with torch.no_grad():
        skipping = network.see(page, GRID, torch.ones(1, GRID * GRID))
        torch.testing.assert_close(skipping, network.see(page, GRID), rtol=1e-4, atol=1e-4)
        model = network.model.vision(network.model.normalize(page))
    torch.testing.assert_close(skipping.flatten(1, 2), model, rtol=1e-4, atol=1e-4)


def test_skipped_patches_change_as_the_kept_blank_ones_do(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "BLANKS_KEPT", 0)
    page = tiles(1)
    printed = torch.ones(1, GRID * GRID)
    printed[:, GRID * GRID // 2 :] = 0
    with torch.no_grad():
        seen = network.see(page, GRID, printed).flatten(1, 2)
        embedded = network.model.vision.embed(network.model.normalize(page))[:, 1:]
    change = (seen - embedded)[0, GRID * GRID // 2 :]
    assert change.std(0).max() < 1e-5  # no blank patch was kept: they stay as they were
    assert (seen - embedded)[0, : GRID * GRID // 2].std(0).max() > 1e-3


def batch(pages: list[tuple[str, Grid, list[str]]]) -> Batch:
    """Pages of a text with some questions; every answer is the page's text."""
    prompts, rng = Prompts(), np.random.default_rng(1)
    drawn, samples = [], []
    for text, grid, questions in pages:
        noise = rng.integers(0, 256, (TILE_PX * grid.rows, TILE_PX * grid.columns, 3))
        boxes = np.tile(np.array([[7, 7, 20, 20]], np.float32), (len(text), 1))
        page = Page(Image.fromarray(noise.astype(np.uint8)), text, boxes, "receipt", {})
        drawn.append(page)
        asked = [Question(question, text) for question in questions]
        samples.append(prompts.tokenize(page, asked))
    return make_batch(drawn, samples, prompts)


READ = ["Read the text."]
ONE, UPRIGHT = Grid(1, 1), Grid(1, 2)


def test_pieces_hold_every_page_once_with_its_tiles_and_its_answer() -> None:
    texts = ["a" * 90, "b", "c" * 40, "d" * 60]
    whole = batch(
        [(text, grid, READ) for text, grid in zip(texts, [ONE, UPRIGHT] * 2, strict=True)]
    )
    pieces = cut(whole, 2)
    assert [len(piece.ids) for piece in pieces] == [2, 2]
    assert sorted(answers(pieces)) == sorted(answers([whole]))
    for piece in pieces:
        assert len(piece.tiles) == sum(piece.tiles_per_page) == len(piece.printed)
        used = int((piece.labels != IGNORE).any(0).nonzero().max()) + 1
        assert 0 <= piece.ids.shape[1] - used < PAD_MULTIPLE
    seen = {tile.numpy().tobytes() for piece in pieces for tile in piece.tiles}
    assert seen == {tile.numpy().tobytes() for tile in whole.tiles}


def answers(batches: list[Batch]) -> list[list[int]]:
    return [row[row != IGNORE].tolist() for batch in batches for row in batch.labels]


def test_questions_about_a_page_are_answered_as_if_each_were_alone(network: Network) -> None:
    """And as the model itself, which has no branches, would answer."""
    ways = ["Read the text.", "What does it say?", "What is this?"]
    pages = [("two tiles", UPRIGHT, ways), ("one", ONE, ways[:1])]
    with torch.no_grad():
        together = batch(pages)
        hidden, _ = network.decode(together, network.project(network.see(together.tiles, GRID)))
        for number, way in enumerate(ways, 1):
            alone = batch([("two tiles", UPRIGHT, [way])])
            alone.tiles[:] = together.tiles[:2]
            seen = network.project(network.see(alone.tiles, GRID))
            expected, _ = network.decode(alone, seen)
            here, there = together.branches[0] == number, alone.branches[0] == 1
            torch.testing.assert_close(hidden[0, here], expected[0, there], rtol=1e-3, atol=1e-4)
            x = network.model.decoder.embed(alone.ids)
            start = alone.image_start
            x[:, start : start + seen.flatten(0, 1).shape[0]] = seen.flatten(0, 1)
            plain = network.model.decoder(x)
            torch.testing.assert_close(plain[0, there], expected[0, there], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonal_updates_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.5
    assert values.max() < 1.5
