"""Layers whose weights stay in main memory and pass through a device while they are used.

InternViT-6B takes 11 GB, is needed for a second a page, and would keep a card from holding the
decoder. Two layers at a time lie on the device: one computes while the next is copied. All pages'
tiles go through a layer before the next comes, so the weights pass once, whatever the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NUM_SLOTS = 2


class Transfers:
    """Copies into slots, at once; for devices without streams."""

    def fill(self, slot: int, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Begins to copy, when what was computed with the slot has ended."""
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    def wait(self, slot: int) -> None:
        """What is computed from now on finds the slot full."""

    def release(self, slot: int) -> None:
        """What was computed up to now was the last that needed the slot as it is."""


class CudaTransfers(Transfers):
    """Copies on a stream of its own, beside the computing if the sources are in pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.full = [torch.cuda.Event() for _ in range(NUM_SLOTS)]
        self.free = [torch.cuda.Event() for _ in range(NUM_SLOTS)]

    def fill(self, slot: int, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.free[slot])
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            self.full[slot].record(self.stream)

    def wait(self, slot: int) -> None:
        torch.cuda.current_stream(self.device).wait_event(self.full[slot])

    def release(self, slot: int) -> None:
        self.free[slot].record(torch.cuda.current_stream(self.device))


class StreamedLayers:
    """Runs layers of one shape, whose weights are in main memory, on a device."""

    def __init__(
        self, layers: nn.ModuleList, device: torch.device, transfers: Transfers | None = None
    ) -> None:
        """`layers` are on the CPU; on CUDA their memory is pinned here."""
        self.device = device
        if device.type == "cuda":
            for p in layers.parameters():
                p.data = p.data.pin_memory()
        self._sources = [list(layer.parameters()) for layer in layers]
        self._slots = [
            copy.deepcopy(layers[0]).to(device).requires_grad_(False) for _ in range(NUM_SLOTS)
        ]
        self._targets = [list(slot.parameters()) for slot in self._slots]
        if transfers is None:
            transfers = CudaTransfers(device) if device.type == "cuda" else Transfers()
        self._transfers = transfers

    @property
    def num_bytes(self) -> int:
        """What the device holds of the layers."""
        return sum(p.nbytes for targets in self._targets for p in targets)

    def __call__(self, chunks: Sequence[Tensor]) -> list[Tensor]:
        """Activations on the device, chunk by chunk, before the first layer -> after the last."""
        found = list(chunks)
        self._fill(0)
        for index in range(len(self._sources)):
            if index + 1 < len(self._sources):
                self._fill(index + 1)
            slot = index % NUM_SLOTS
            self._transfers.wait(slot)
            found = [self._slots[slot](x) for x in found]
            self._transfers.release(slot)
        return found

    def _fill(self, index: int) -> None:
        slot = index % NUM_SLOTS
        self._transfers.fill(slot, self._targets[slot], self._sources[index])
