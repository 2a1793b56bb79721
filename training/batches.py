"""From rendered pages to tensors: what the network sees and what it is asked for.

Pages go through the package's own preprocessing: each is stretched to one tile of `GRID` x `GRID`
patches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ivl.prompt.pixels import cut_tiles
from training.demo_config import MAX_TILES, PATCH_PX, TILE_PX
from training.pages import Page, make_page
from training.prompts import Prompts, Sample

GRID = TILE_PX // PATCH_PX
PARTS_PER_PATCH = 3
"""Each patch names the characters at so many places side by side."""
EMPTY = 0
NUM_CLASSES = 1 + 94
IGNORE = -100
POOL = 5
BLANK_SPREAD = 12
"""Patches whose colours differ by no more than this (of 255) show nothing."""
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
    scan: float = 0.0
    questions: float = 0.0
    """The share of pages that are asked about instead of read."""
    extractions: float = 0.0
    """The share of pages from which a JSON object is to be filled, where they are receipts or
    invoices."""
    common: float = 0.9
    """The share of pages in common fonts, which a short training has a better chance to learn."""
    skip_blanks: bool = False
    """Whether most blank patches are left out of the tower, which halves its work."""
    lr: float = 1.0
    lr_end: float = 1.0
    """The learning rate's factor at the stage's beginning and end; between them it is linear in
    the time that has passed."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """tiles uint8 (b, px, px, 3); ids, labels (b, tokens); the rest as the functions below say."""

    tiles: Tensor
    ids: Tensor
    labels: Tensor
    image_start: int
    patch_labels: Tensor
    align: Tensor

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tiles", "ids", "labels", "patch_labels", "align")
        }
        return replace(self, **moved)


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
    samples = [prompts.sample(page, rng, stage.questions, stage.extractions) for page in pages]
    order = np.argsort([len(s.prompt) + len(s.answer) for s in samples], kind="stable")
    for number in rng.permutation(POOL):
        chosen = order[number * stage.batch : (number + 1) * stage.batch]
        yield make_batch([pages[i] for i in chosen], [samples[i] for i in chosen], prompts)


def make_batch(pages: list[Page], samples: list[Sample], prompts: Prompts) -> Batch:
    tiles = [cut_tiles(page.image, tile_px=TILE_PX, max_tiles=MAX_TILES)[0] for page in pages]
    boxes = [tile_boxes(page) for page in pages]
    ids, labels, starts = collate(samples, prompts.pad_id)
    names = [patch_labels(p.text, b) for p, b in zip(pages, boxes, strict=True)]
    return Batch(
        tiles=torch.from_numpy(np.stack(tiles)),
        ids=ids,
        labels=labels,
        image_start=prompts.image_start,
        patch_labels=torch.stack(names),
        align=align_targets(samples, boxes, starts, ids.shape),
    )


def printed_patches(tiles_u8: Tensor) -> Tensor:
    """1 where a patch is of more than one colour: float (b, GRID * GRID)."""
    patches = tiles_u8.unflatten(1, (GRID, PATCH_PX)).unflatten(3, (GRID, PATCH_PX))
    spread = patches.amax((2, 4)).int() - patches.amin((2, 4)).int()  # (b, GRID, GRID, 3)
    return (spread.amax(-1) > BLANK_SPREAD).float().flatten(1)


def cut(batch: Batch, size: int) -> list[Batch]:
    """Batches of `size` pages that are about equally full, no longer than their longest page."""
    pieces = []
    for rows in printed_patches(batch.tiles).sum(1).argsort(stable=True).split(size):
        used = int((batch.labels[rows] != IGNORE).any(0).nonzero().max()) + 1
        length = min(-(-used // PAD_MULTIPLE) * PAD_MULTIPLE, batch.ids.shape[1])
        pieces.append(
            Batch(
                tiles=batch.tiles[rows],
                ids=batch.ids[rows, :length],
                labels=batch.labels[rows, :length],
                image_start=batch.image_start,
                patch_labels=batch.patch_labels[rows],
                align=batch.align[rows, :length],
            )
        )
    return pieces


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
        scan=stage.scan,
        fonts="common" if rng.random() < stage.common else "train",
    )


def tile_boxes(page: Page) -> np.ndarray:
    """The page's boxes in pixels of the tile that it is stretched to."""
    scale = TILE_PX / np.array([page.image.width, page.image.height] * 2, np.float32)
    return page.boxes * scale


def patch_labels(text: str, boxes: np.ndarray) -> Tensor:
    """Which character covers each place of each patch: int64 (GRID * GRID, PARTS_PER_PATCH).

    A place is a point at half the height of the patch; 0 where no character's box covers it.
    """
    labels = np.zeros((GRID, GRID * PARTS_PER_PATCH), np.int64)
    part_px = PATCH_PX / PARTS_PER_PATCH
    first_row = np.ceil(boxes[:, 1] / PATCH_PX - 0.5)
    last_row = np.floor(boxes[:, 3] / PATCH_PX - 0.5)
    first_part = np.ceil(boxes[:, 0] / part_px - 0.5)
    last_part = np.floor(boxes[:, 2] / part_px - 0.5)
    for i, character in enumerate(text):
        if np.isnan(boxes[i, 0]):
            continue
        r0, r1 = max(0, int(first_row[i])), int(last_row[i]) + 1
        c0, c1 = max(0, int(first_part[i])), int(last_part[i]) + 1
        labels[r0:r1, c0:c1] = ord(character) - 32
    return torch.from_numpy(labels.reshape(GRID * GRID, PARTS_PER_PATCH))


def collate(samples: list[Sample], pad_id: int) -> tuple[Tensor, Tensor, list[int]]:
    """Pads at the end. labels[t] is the token that follows ids[t], where it is the answer's."""
    length = max(len(s.prompt) + len(s.answer) for s in samples) - 1
    length = -(-length // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = torch.full((len(samples), length), pad_id)
    labels = torch.full((len(samples), length), IGNORE)
    starts = []
    for row, s in enumerate(samples):
        whole = torch.tensor(s.prompt + s.answer)
        ids[row, : len(whole) - 1] = whole[:-1]
        start = len(s.prompt) - 1
        labels[row, start : len(whole) - 1] = whole[start + 1 :]
        starts.append(start)
    return ids, labels, starts


def align_targets(
    samples: list[Sample], boxes: list[np.ndarray], starts: list[int], shape: torch.Size
) -> Tensor:
    """The image token under the character that comes next: int64 (b, tokens), IGNORE elsewhere.

    Image tokens are two patches wide and high.
    """
    side, token_px = GRID // 2, 2 * PATCH_PX
    out = torch.full(shape, IGNORE)
    for row, (sample, box, start) in enumerate(zip(samples, boxes, starts, strict=True)):
        if not len(box):
            continue
        column = np.clip((box[:, 0] + box[:, 2]) / 2 // token_px, 0, side - 1)
        line = np.clip((box[:, 1] + box[:, 3]) / 2 // token_px, 0, side - 1)
        token = np.nan_to_num(line * side + column, nan=IGNORE).astype(np.int64)
        index = np.array(sample.positions)
        target = np.where(index >= 0, token[index], IGNORE)
        out[row, start : start + len(target)] = torch.from_numpy(target)
    return out
