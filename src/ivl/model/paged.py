"""Segments of a few tokens each, as the attention over the paged cache on a GPU takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivl.kernels import dispatch
from ivl.kv import BLOCK_TOKENS
from ivl.model.cache import KVStore, Segment, SplitKVStore, TorchKVStore

FEW_TOKENS = 8
"""Segments with more, of prompts, are read by PyTorch's attention, which shares the keys among
them."""


class PagedBatch:
    """Which blocks every token of a batch sees. Made once for all layers of a device."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        """All segments are in one store."""
        self.store = segments[0].cache.store
        self.most_tokens = max(segment.end for segment in segments)
        most_blocks = -(-self.most_tokens // BLOCK_TOKENS)
        tables, places, numbers, lengths = [], [], [], []
        for number, segment in enumerate(segments):
            blocks = segment.cache.blocks[:most_blocks]
            tables.append(blocks + [0] * (most_blocks - len(blocks)))
            for token in range(segment.cache.length, segment.end):
                block, rest = divmod(token, BLOCK_TOKENS)
                places.append(segment.cache.blocks[block] * BLOCK_TOKENS + rest)
                numbers.append(number)
                lengths.append(token + 1)
        self.tables = torch.tensor(tables, dtype=torch.int32).to(device, non_blocking=True)
        self.places = torch.tensor(places).to(device, non_blocking=True)
        self.numbers = torch.tensor(numbers, dtype=torch.int32).to(device, non_blocking=True)
        self.lengths = torch.tensor(lengths, dtype=torch.int32).to(device, non_blocking=True)

    @classmethod
    def over(
        cls,
        store: KVStore,
        tables: Tensor,
        places: Tensor,
        numbers: Tensor,
        lengths: Tensor,
        most_tokens: int,
    ) -> PagedBatch:
        """A batch whose tensors are there already, see `ivl.kernels.triton.attention`; `places`
        int64 (tokens,): where the new keys and values go."""
        batch = cls.__new__(cls)
        batch.store, batch.most_tokens = store, most_tokens
        batch.tables, batch.places = tables, places
        batch.numbers, batch.lengths = numbers, lengths
        return batch

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> PagedBatch | None:
        """None where a device has no such attention, or prompts are read."""
        if not segments or not dispatch.runs_triton(device):
            return None
        if any(segment.num_tokens > FEW_TOKENS for segment in segments):
            return None
        if not isinstance(segments[0].cache.store, TorchKVStore | SplitKVStore):
            return None
        same = all(segment.cache.store is segments[0].cache.store for segment in segments)
        return cls(segments, device) if same else None

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """q (tokens, heads, head_dim), k and v (tokens, kv_heads, head_dim), before rotation: puts
        k and v into the cache; returns what q finds there, in the shape of q."""
        from ivl.kernels.triton.attention import paged_attention
        from ivl.kernels.triton.pointwise import rotate

        store = self.store.part(layer)
        assert isinstance(store, TorchKVStore)
        store.write(layer, self.places, rotate(k, cos, sin), v)
        numbers, scales = store.of(layer)
        return paged_attention(
            rotate(q, cos, sin), numbers, scales, self.tables, self.numbers, self.lengths,
            block_tokens=BLOCK_TOKENS, most_tokens=self.most_tokens,
        )  # fmt: skip
