"""From rendered pages to tensors: what the network sees and what it is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from training.pages import Page, make_page
from training.prompts import Prompts, Sample
from training.tiles import (
    page_grid,
    page_tiles,
    patch_labels,
    printed_patches,
    stretched_boxes,
    token_places,
)

EMPTY = 0
NUM_CLASSES = 1 + 94
IGNORE = -100
LEAST_SCAN = 0.3
POOL = 5
PAD_MULTIPLE = 32
"""Few lengths, because libraries prepare themselves anew for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step of the curriculum."""

    name: str
    share: float
    """Of the run's time."""
    batch: int
    window: int
    """Patches attend within squares of this side; `GRID` for the whole tile. Characters are local,
    so small windows teach them at a fraction of the attention's cost."""
    max_lines: int
    min_lines: int = 1
    """Pages are drawn with between `min_lines` and `max_lines` lines to fill."""
    dense: float
    """The share of pages that are filled with random characters."""
    text_weight: float
    patch_weight: float
    align_weight: float
    garbled: float = 0.0
    """The most letters of an answer that are wrong where the decoder reads what it wrote. It learns
    to go on from its place on the page, whatever it wrote last."""
    scan: float = 0.0
    """The share of pages that are scans, of any strength from `LEAST_SCAN` on."""
    questions: float = 0.0
    """The share of pages that are asked about instead of read."""
    common: float = 0.9
    """The share of pages in common fonts, which a short training has a better chance to learn."""
    skip_blanks: bool = False
    """Whether most blank patches are left out of the tower, which halves its work."""
    lr: float = 1.0
    lr_end: float = 1.0
    """The learning rate's factor at the stage's beginning and end; between them it is linear in
    the time that has passed."""


TOKEN_FIELDS = ("ids", "labels", "weights", "positions", "branches", "align")


@dataclass(slots=True, kw_only=True)
class Batch:
    """Pages, whose tiles follow one another, and the tokens of their samples.

    tiles: uint8 (tiles, px, px, 3). patch_labels: int64 (tiles, GRID * GRID, PARTS_PER_PATCH).
    printed: float (tiles, GRID * GRID), 1 where something is printed.
    ids: int64 (b, tokens). labels: the token that follows, where it is an answer's, else IGNORE.
    weights: float (b, tokens); the tokens of a short answer weigh more than those of a long one.
    positions: of a token in its turn, as the rotary embedding wants it.
    branches: 0 up to the end of the image, then the number of the turn, -1 behind all. A token
        sees what is before it of its own branch and of branch 0.
    align: the image token under the character that comes next, else IGNORE.
    """

    tiles: Tensor
    patch_labels: Tensor
    printed: Tensor
    tiles_per_page: list[int]
    image_start: int
    ids: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor
    branches: Tensor
    align: Tensor

    def to(self, device: torch.device) -> Batch:
        names = ("tiles", "patch_labels", "printed", *TOKEN_FIELDS)
        return replace(
            self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names}
        )

    def pages(self, rows: list[int]) -> Batch:
        """Some of the pages, no longer than the longest of them needs."""
        ends = list(itertools.accumulate(self.tiles_per_page, initial=0))
        tiles = [i for row in rows for i in range(ends[row], ends[row + 1])]
        used = int((self.labels[rows] != IGNORE).any(0).nonzero().max()) + 1
        length = min(-(-used // PAD_MULTIPLE) * PAD_MULTIPLE, self.ids.shape[1])
        return Batch(
            tiles=self.tiles[tiles],
            patch_labels=self.patch_labels[tiles],
            printed=self.printed[tiles],
            tiles_per_page=[self.tiles_per_page[row] for row in rows],
            image_start=self.image_start,
            **{name: getattr(self, name)[rows, :length] for name in TOKEN_FIELDS},
        )


class Batches(IterableDataset[Batch]):
    """The endless batches of a stage from number `first` on, which must be a multiple of POOL.

    Pages are drawn for POOL batches at a time and sorted by length, so that little is padded.
    What a pool holds depends on the seed and its number alone, whoever makes it.
    """

    def __init__(self, stage: Stage, seed: int, first: int, prompts: Prompts) -> None:
        self.stage, self.seed, self.first, self.prompts = stage, seed, first, prompts

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for pool in itertools.count(self.first // POOL + offset, stride):
            yield from make_batches(self.stage, [self.seed, pool], self.prompts)


def make_batches(stage: Stage, seed: list[int], prompts: Prompts) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    pages = [draw(stage, rng) for _ in range(POOL * stage.batch)]
    samples = [prompts.sample(page, rng, stage.questions) for page in pages]
    order = np.argsort([len(sample) for sample in samples], kind="stable")
    for number in rng.permutation(POOL):
        chosen = order[number * stage.batch : (number + 1) * stage.batch]
        batch = make_batch([pages[i] for i in chosen], [samples[i] for i in chosen], prompts)
        garble(batch, stage.garbled, rng, prompts.letter_ids)
        yield batch


def make_batch(pages: list[Page], samples: list[Sample], prompts: Prompts) -> Batch:
    tiles = [page_tiles(page) for page in pages]
    boxes = [stretched_boxes(page) for page in pages]
    grids = [page_grid(page) for page in pages]
    names = [patch_labels(p.text, b, g) for p, b, g in zip(pages, boxes, grids, strict=True)]
    places = [token_places(b, g) for b, g in zip(boxes, grids, strict=True)]
    return Batch(
        tiles=torch.from_numpy(np.concatenate(tiles)),
        patch_labels=torch.cat(names),
        printed=torch.cat([printed_patches(b, g) for b, g in zip(boxes, grids, strict=True)]),
        tiles_per_page=[grid.num_tiles for grid in grids],
        image_start=prompts.image_start,
        **collate(samples, places, prompts.pad_id),
    )


def garble(batch: Batch, most: float, rng: np.random.Generator, letters: list[int]) -> None:
    """Replaces up to `most` of each page's answers by random letters, in `ids` but not in
    `labels`."""
    answered = batch.labels != IGNORE
    # An answer's first letter is asked for at the end of its question.
    fed_back = answered[:, 1:] & answered[:, :-1]
    fed_back &= batch.branches[:, 1:] == batch.branches[:, :-1]
    shares = most * rng.random((len(batch.ids), 1))
    wrong = fed_back & torch.from_numpy(rng.random(fed_back.shape) < shares)
    batch.ids[:, 1:][wrong] = torch.from_numpy(rng.choice(letters, int(wrong.sum())))


def cut(batch: Batch, size: int) -> list[Batch]:
    """Batches of `size` pages that are about equally full."""
    printed = batch.printed.sum(1).split(batch.tiles_per_page)
    order = torch.stack([page.sum() for page in printed]).argsort(stable=True)
    return [batch.pages(rows.tolist()) for rows in order.split(size)]


def draw(stage: Stage, rng: np.random.Generator) -> Page:
    dense = bool(rng.random() < stage.dense)
    max_lines = (
        stage.max_lines if dense else int(rng.integers(stage.min_lines, stage.max_lines + 1))
    )
    return make_page(
        rng,
        split="train",
        max_lines=max_lines,
        dense=dense,
        scan=float(rng.uniform(LEAST_SCAN, 1.0)) if rng.random() < stage.scan else 0.0,
        fonts="common" if rng.random() < stage.common else "train",
    )


def collate(samples: list[Sample], places: list[np.ndarray], pad_id: int) -> dict[str, Tensor]:
    """The tokens' tensors of a batch, padded at the end. `places[i]` has the image token under
    each character of page i."""
    length = -(-max(len(sample) for sample in samples) // PAD_MULTIPLE) * PAD_MULTIPLE
    shape = (len(samples), length)
    ids, labels, align = (torch.full(shape, value) for value in (pad_id, IGNORE, IGNORE))
    weights, positions = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    branches = torch.full(shape, -1)
    for row, (sample, tokens) in enumerate(zip(samples, places, strict=True)):
        shared = len(sample.image)
        ids[row, :shared] = torch.tensor(sample.image)
        positions[row, :shared], branches[row, :shared] = torch.arange(shared), 0
        begin = shared
        for number, turn in enumerate(sample.turns, 1):
            whole = torch.tensor(turn.question + turn.answer)
            here = slice(begin, begin + len(whole) - 1)
            answer = slice(begin + len(turn.question) - 1, here.stop)
            ids[row, here], branches[row, here] = whole[:-1], number
            positions[row, here] = torch.arange(shared, shared + len(whole) - 1)
            labels[row, answer] = whole[len(turn.question) :]
            weights[row, answer] = len(turn.answer) ** -0.5
            index = np.array(turn.positions)
            under = tokens[index] if len(tokens) else np.full(len(index), -1)
            under = np.where((index >= 0) & (under >= 0), under, IGNORE)
            align[row, answer] = torch.from_numpy(under)
            begin = here.stop
    return {
        "ids": ids, "labels": labels, "weights": weights, "positions": positions,
        "branches": branches, "align": align,
    }  # fmt: skip
