"""Single steps of up to 32 sequences as CUDA graphs: a step is one launch instead of hundreds.

A graph is recorded for a number of sequences, over buffers that stay where they are; a step copies
its inputs there and replays it. Numbers in between are filled up with copies of the last sequence,
which compute, and write to the cache, what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivl.kernels import dispatch
from ivl.kv import BLOCK_TOKENS
from ivl.model.cache import KVStore, Segment, SplitKVStore, TorchKVStore, num_blocks_for

FEW_TOKENS = 8
"""Segments with more, of prompts, are read by PyTorch's attention, which shares the keys among
them."""


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Which blocks every token of a batch sees; made once for all layers of a device.

    tables, sequences and lengths: see `ivl.kernels.triton.attention`. places int64 (tokens,): where
    the new keys and values go. most_tokens: of a sequence.
    """

    store: KVStore
    tables: Tensor
    places: Tensor
    sequences: Tensor
    lengths: Tensor
    most_tokens: int

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> PagedBatch | None:
        """None where a device has no such attention, or prompts are read."""
        if not segments or not dispatch.runs_triton(device):
            return None
        store = segments[0].cache.store
        if any(segment.num_tokens > FEW_TOKENS for segment in segments):
            return None
        if not isinstance(store, TorchKVStore | SplitKVStore):
            return None
        same = all(segment.cache.store is store for segment in segments)
        return cls.made_of(segments, device) if same else None

    @classmethod
    def made_of(cls, segments: Sequence[Segment], device: torch.device) -> PagedBatch:
        """All segments are in one store."""
        most_tokens = max(segment.end for segment in segments)
        most_blocks = num_blocks_for(most_tokens)
        tables, places, sequences, lengths = [], [], [], []
        for number, segment in enumerate(segments):
            blocks = segment.cache.blocks[:most_blocks]
            tables.append(blocks + [0] * (most_blocks - len(blocks)))
            for token in range(segment.cache.length, segment.end):
                block, rest = divmod(token, BLOCK_TOKENS)
                places.append(segment.cache.blocks[block] * BLOCK_TOKENS + rest)
                sequences.append(number)
                lengths.append(token + 1)

        def there(numbers: list[int] | list[list[int]], dtype: torch.dtype) -> Tensor:
            return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)

        return cls(
            segments[0].cache.store,
            there(tables, torch.int32),
            there(places, torch.int64),
            there(sequences, torch.int32),
            there(lengths, torch.int32),
            most_tokens,
        )

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
            rotate(q, cos, sin), numbers, scales, self.tables, self.sequences, self.lengths,
            block_tokens=BLOCK_TOKENS, most_tokens=self.most_tokens,
        )  # fmt: skip


SIZES = (1, 2, 4, 8, 16, 32)
WARMUPS = 2

Run = Callable[[Tensor, Tensor, Tensor, PagedBatch], Tensor]
"""Hidden states (n, hidden), cosines and sines (n, head_dim), the batch -> hidden states after the
norm (n, hidden)."""
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function does on the device; what it returns does it again."""


class StepGraphs:
    """The graphs of one decoder, over the store that was used last."""

    def __init__(
        self, *, hidden_size: int, head_dim: int, context: int, device: torch.device,
        dtype: torch.dtype, capture: Capture | None = None,
    ) -> None:  # fmt: skip
        """`context`: the most tokens of a sequence."""
        self._context = context
        self._capture = capture or CudaCapture(device)
        largest = SIZES[-1]
        self._x = torch.zeros((largest, hidden_size), dtype=dtype, device=device)
        self._cos, self._sin = (
            torch.zeros((largest, head_dim), dtype=dtype, device=device) for _ in range(2)
        )
        self._out = torch.zeros_like(self._x)
        blocks = num_blocks_for(context)
        self._tables = torch.zeros((largest, blocks), dtype=torch.int32, device=device)
        self._places = torch.zeros(largest, dtype=torch.int64, device=device)
        self._lengths = torch.ones(largest, dtype=torch.int32, device=device)
        self._numbers = torch.arange(largest, dtype=torch.int32, device=device)
        self._store: KVStore | None = None
        self._replays: dict[int, Callable[[], None]] = {}

    def takes(self, segments: Sequence[Segment]) -> bool:
        """Whether these are single steps that a graph is made for."""
        return (
            0 < len(segments) <= SIZES[-1]
            and all(segment.num_tokens == 1 for segment in segments)
            and max(segment.end for segment in segments) <= self._context
        )

    def step(
        self, run: Run, x: Tensor, segments: Sequence[Segment], cos: Tensor, sin: Tensor
    ) -> Tensor:
        """x (n, hidden), cos and sin (n, head_dim) -> hidden states (n, hidden) after the norm,
        valid until the next step. Writes the cache, and does not advance it.

        `run` is what is recorded, the decoder's own. It is not kept: the two would hold each other.
        """
        count = len(segments)
        size = next(size for size in SIZES if size >= count)
        batch = PagedBatch.made_of(segments, x.device)
        fill = torch.arange(size).clamp(max=count - 1).to(x.device)
        for static, given in (
            (self._x, x), (self._cos, cos), (self._sin, sin), (self._places, batch.places),
            (self._lengths, batch.lengths),
        ):  # fmt: skip
            static[:size] = given[fill]
        self._tables[:size, : batch.tables.shape[1]] = batch.tables[fill]
        if batch.store is not self._store:
            self._store, self._replays = batch.store, {}
        if size not in self._replays:
            self._replays[size] = self._capture(lambda: self._compute(run, size))
        self._replays[size]()
        return self._out[:count]

    def _compute(self, run: Run, size: int) -> None:
        assert self._store is not None
        batch = PagedBatch(
            self._store, self._tables[:size], self._places[:size], self._numbers[:size],
            self._lengths[:size], self._context,
        )  # fmt: skip
        found = run(self._x[:size], self._cos[:size], self._sin[:size], batch)
        self._out[:size].copy_(found)


class CudaCapture:
    """Records by CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):  # compiles kernels and chooses algorithms, unrecorded
            for _ in range(WARMUPS):
                run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay
