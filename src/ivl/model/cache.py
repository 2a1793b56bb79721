"""The key/value cache: stores of blocks, and the sequences whose tokens lie in them.

A store holds keys and values of all layers for blocks of `BLOCK_TOKENS` tokens. A sequence names
the blocks that are its own, in order, so that sequences of all lengths share one store, and two
sequences that begin alike may share their first blocks. Source: PagedAttention (Kwon et al., 2023,
arXiv:2309.06180).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivl.config import DecoderConfig
from ivl.errors import CapacityError
from ivl.kv import BLOCK_TOKENS, KVType, scale_group


def num_blocks_for(num_tokens: int) -> int:
    """Blocks that `num_tokens` tokens need."""
    return -(-num_tokens // BLOCK_TOKENS)


class KVStore(ABC):
    """Memory for keys and values of all layers, `num_blocks` blocks of `BLOCK_TOKENS` tokens."""

    num_blocks: int
    kv: KVType
    first_layer: int = 0
    """Of a store that holds only some of the layers."""

    def part(self, layer: int) -> KVStore:
        """The store that holds this layer."""
        return self

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of all blocks."""

    @abstractmethod
    def reserve(self) -> None:
        """Takes all the memory now, where a system gives it only when it is written to."""


class SplitKVStore(KVStore):
    """Several stores, each of which holds the layers from its `first_layer` on."""

    def __init__(self, parts: Sequence[KVStore]) -> None:
        self.parts = tuple(parts)
        self.num_blocks, self.kv = parts[0].num_blocks, parts[0].kv

    def part(self, layer: int) -> KVStore:
        return next(part for part in reversed(self.parts) if part.first_layer <= layer)

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def reserve(self) -> None:
        for part in self.parts:
            part.reserve()


class TorchKVStore(KVStore):
    """Tensors (num_blocks, BLOCK_TOKENS, kv_heads, head_dim) for each layer, on any device.

    At 8 bits a group of channels of one token and head has a scale: its largest magnitude / 127.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        *,
        dtype: torch.dtype = torch.float32,
        kv: KVType | None = None,
        devices: Sequence[torch.device | str] | None = None,
        first_layer: int = 0,
    ) -> None:
        """`dtype` is what keys and values come in; `kv` None keeps them in it. `devices`: of each
        layer from `first_layer` on; None: all on the CPU."""
        self.num_blocks, self.first_layer = num_blocks, first_layer
        devices = ["cpu"] * config.num_layers if devices is None else devices
        self.kv = kv or ("32bit" if dtype == torch.float32 else "16bit")
        self.dtype = dtype
        shape = (num_blocks * BLOCK_TOKENS, config.num_kv_heads, config.head_dim)
        narrow = torch.float16 if dtype == torch.float32 else dtype
        stored = {"32bit": torch.float32, "16bit": narrow, "8bit": torch.int8}[self.kv]
        self._numbers = [torch.empty((2, *shape), dtype=stored, device=d) for d in devices]
        self._scales: list[Tensor] = []
        if self.kv == "8bit":
            self._group = scale_group(config)
            groups = (2, *shape[:2], config.head_dim // self._group)
            self._scales = [torch.empty(groups, device=d) for d in devices]

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for t in (*self._numbers, *self._scales))

    def reserve(self) -> None:
        for tensor in (*self._numbers, *self._scales):
            tensor.zero_()

    def update(self, layer: int, cache: KVCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k, v (tokens, kv_heads, head_dim) behind the valid tokens of `cache`.

        Returns all its keys and values up to and including the new ones, in the type of k.
        """
        start, end = cache.length, cache.length + len(k)
        places = self._places(cache.blocks, end, k.device)
        new = (
            slice(places.start + start, places.stop)
            if isinstance(places, slice)
            else places[start:]
        )
        self.write(layer, new, k, v)
        numbers, scales = self.of(layer)
        if scales is None:
            found = numbers[:, places].to(k.dtype)
            return found[0], found[1]
        wide = numbers[:, places].unflatten(-1, (-1, self._group)) * scales[:, places, :, :, None]
        found = wide.flatten(-2).to(k.dtype)
        return found[0], found[1]

    def write(self, layer: int, places: slice | Tensor, k: Tensor, v: Tensor) -> None:
        """Puts k, v (tokens, kv_heads, head_dim) at `places` (tokens,)."""
        numbers, scales = self.of(layer)
        both = torch.stack([k, v])
        if scales is None:
            numbers[:, places] = both.to(numbers.dtype)
            return
        grouped = both.float().unflatten(-1, (-1, self._group))
        most = grouped.abs().amax(-1)
        scales[:, places] = most / 127
        whole = grouped * torch.where(most > 0, 127 / most, 0.0)[..., None]
        numbers[:, places] = whole.round().to(torch.int8).flatten(-2)

    def of(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Numbers (2, places, kv_heads, head_dim) of a layer, and scales (2, places, kv_heads,
        groups) where they are int8. A place is block * BLOCK_TOKENS + token."""
        layer -= self.first_layer
        return self._numbers[layer], self._scales[layer] if self._scales else None

    def _places(self, blocks: Sequence[int], end: int, device: torch.device) -> slice | Tensor:
        """Where the first `end` tokens lie: a slice if their blocks are neighbours, which costs no
        copy, else their indices."""
        used = blocks[: num_blocks_for(end)]
        first = used[0] if used else 0
        if list(used) == list(range(first, first + len(used))):
            return slice(first * BLOCK_TOKENS, first * BLOCK_TOKENS + end)
        index = torch.tensor(used).to(device)[:, None] * BLOCK_TOKENS
        index = index + torch.arange(BLOCK_TOKENS, device=device)
        return index.flatten()[:end]


class KVCache:
    """The tokens of one sequence: the first `length` places of its `blocks`.

    A forward pass writes behind them and `advance` makes what was written valid, so a pass that
    fails leaves the cache as it was.
    """

    def __init__(self, store: KVStore, blocks: Iterable[int], capacity: int | None = None) -> None:
        """`capacity` in tokens: by default all that the blocks hold."""
        self.store = store
        self.blocks = list(blocks)
        self._limit = capacity
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens that the sequence may have with the blocks that it has now."""
        room = len(self.blocks) * BLOCK_TOKENS
        return room if self._limit is None else min(room, self._limit)

    def require(self, num_tokens: int) -> None:
        """CapacityError unless `num_tokens` more tokens find room."""
        end = self.length + num_tokens
        if end > self.capacity:
            raise CapacityError(
                f"The conversation needs {end} tokens, and the cache holds {self.capacity}.",
                "Load the model with a larger context, or use fewer or smaller images.",
            )

    def advance(self, num_tokens: int) -> None:
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on."""
        assert 0 <= length <= self.length
        self.length = length


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one sequence that a forward pass reads: they follow those its cache holds.

    `sequence_length` is that of the whole prompt when this is one chunk of it (see `Rotary`); None:
    the sequence ends with these tokens. `is_prompt`: they were given; otherwise they were written,
    and what follows each of them is wanted.
    """

    cache: KVCache
    num_tokens: int
    sequence_length: int | None = None
    is_prompt: bool = False

    @property
    def end(self) -> int:
        return self.cache.length + self.num_tokens
