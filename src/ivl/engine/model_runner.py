"""A network as the engine drives it: its store of keys and values, and the tiles that it has seen.

It computes what it is told to, for any number of sequences at once, and decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ivl.config import ModelConfig
from ivl.engine.blocks import Sequence
from ivl.errors import CapacityError
from ivl.model.cache import KVCache, Segment
from ivl.model.internvl import InternVL
from ivl.prompt.tokenizer import Tokenizer

CPU_MESSAGE = "can't allocate memory"
"""What torch's allocator for processors says; it has no class of its own for that."""


@contextmanager
def capacity_error(doing: str, hint: str) -> Iterator[None]:
    """Within it, running out of memory raises CapacityError: "The memory ran out while `doing`"."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:  # the second: of C++ and of numpy
        raise CapacityError(f"The memory ran out while {doing}.", hint) from error
    except RuntimeError as error:
        if CPU_MESSAGE not in str(error):
            raise
        raise CapacityError(f"The memory ran out while {doing}.", hint) from error


class VisionCache:
    """Features (tokens_per_tile, hidden) of tiles by the digest of their pixels, at most
    `max_bytes` of them; the least recently used go first. One thread uses it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._features

    def __len__(self) -> int:
        return len(self._features)

    def get(self, digest: bytes) -> Tensor | None:
        found = self._features.get(digest)
        if found is not None:
            self._features.move_to_end(digest)
        return found

    def put(self, digest: bytes, features: Tensor) -> None:
        """Keeps the features, unless they alone are more than the cache may hold."""
        if digest in self._features or features.nbytes > self.max_bytes:
            return
        # A view would keep alive all the tiles that were encoded with it.
        self._features[digest] = features.clone()
        self.num_bytes += features.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._features.popitem(last=False)
            self.num_bytes -= oldest.nbytes


LESS_VISION = "Load the model with a smaller `vision_batch`, or give fewer tiles (`max_tiles`)."
LESS_CONTEXT = (
    "Load the model with a smaller context (`context`), or give fewer tiles (`max_tiles`)."
)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence that are read next: `ids` from place `start` on.

    `num_logits`: of how many of the last of them the logits are wanted.
    """

    sequence: Sequence
    start: int
    ids: list[int]
    num_logits: int


VISION_CACHE_BYTES = 64 * 1024**2
"""Of features that are kept, unless somebody says otherwise."""


class LoadedModel(Protocol):
    """A network, its tokenizer, and how long its sequences may be; an `Engine` is one."""

    model: InternVL
    tokenizer: Tokenizer
    config: ModelConfig
    context: int
    vision_batch: int


class ModelRunner:
    """One network, `num_blocks` blocks of keys and values, and features of tiles."""

    def __init__(
        self,
        model: InternVL,
        num_blocks: int,
        *,
        vision_batch: int,
        vision_cache_bytes: int = VISION_CACHE_BYTES,
        reserve: bool = False,
    ) -> None:
        """CapacityError when there is no memory for the blocks. `vision_batch` tiles are encoded at
        once; features of at most `vision_cache_bytes` are kept for others who show the same.
        `reserve`: all memory is taken now, where a system gives it only when it is written to."""
        self.model, self.vision_batch = model, vision_batch
        with capacity_error("reserving the key/value cache", LESS_CONTEXT):
            self.store = model.new_store(num_blocks)
            if reserve:
                self.store.reserve()
        self.vision_cache = VisionCache(vision_cache_bytes)
        self._features: dict[Sequence, dict[int, Tensor]] = {}
        """Of the tiles that are about to be read, by number, (tokens_per_tile, hidden)."""

    def encode(self, tiles: Iterable[tuple[Sequence, int]]) -> int:
        """Makes the features of tiles, each given by its sequence and its number there. Those that
        look the same are encoded once; returns how many were."""
        new: dict[bytes, Tensor] = {}
        found: dict[bytes, Tensor] = {}
        tiles = list(tiles)
        for sequence, number in tiles:
            tile = sequence.tiles[number]
            features = self.vision_cache.get(tile.digest)
            if features is not None:
                found[tile.digest] = features
            elif tile.digest not in new:
                assert tile.pixels is not None
                new[tile.digest] = torch.from_numpy(tile.pixels)
        if new:
            with capacity_error("encoding an image", LESS_VISION):
                encoded = self.model.encode_tiles(torch.stack([*new.values()]), self.vision_batch)
            if encoded.device.type == "cuda":
                torch.cuda.synchronize(encoded.device)  # whose time it is can be told
            for digest, features in zip(new, encoded, strict=True):
                found[digest] = features
                self.vision_cache.put(digest, features)
        for sequence, number in tiles:
            kept = self._features.setdefault(sequence, {})
            kept[number] = found[sequence.tiles[number].digest]
        return len(new)

    def read(self, spans: Iterable[Span]) -> Tensor:
        """Reads all spans in one pass into the blocks of their sequences; float32 logits (sum of
        num_logits, vocab)."""
        ids: list[int] = []
        is_image: list[bool] = []
        features: list[Tensor] = []
        segments, num_logits = [], []
        for span in spans:
            marks = [False] * len(span.ids)
            features += self._features_in(span, marks)
            ids += span.ids
            is_image += marks
            segments.append(self._segment(span))
            num_logits.append(span.num_logits)
        device = self.model.device
        with capacity_error("reading", LESS_CONTEXT):
            tokens = torch.tensor(ids, device=device)
            if features:
                marked = torch.tensor(is_image, device=device)
                x = self.model.embed(tokens, marked, torch.cat(features)[None])[0]
            else:
                x = self.model.decoder.embed(tokens)
            return self.model.extend(x, segments, num_logits)

    def forget(self, sequence: Sequence, before: int | None = None) -> None:
        """Lets go of the features of a sequence: of tiles that end `before` this place, or all."""
        kept = self._features.get(sequence)
        if kept is None:
            return
        for number in list(kept):
            if before is None or sequence.tiles[number].end <= before:
                del kept[number]
        if not kept:
            self._features.pop(sequence, None)

    def _segment(self, span: Span) -> Segment:
        sequence, end = span.sequence, span.start + len(span.ids)
        cache = KVCache(self.store, sequence.blocks)
        cache.length = span.start
        # A prompt is rotated as a whole, however it is cut; what is written, token by token, also
        # when it is read again (`Sequence.chunk_end`).
        # What was written and is read once more, many at a time, is like a prompt.
        is_prompt = span.start < sequence.num_prompt_tokens or span.num_logits < len(span.ids)
        length = max(sequence.num_prompt_tokens, end)
        return Segment(cache, len(span.ids), length, is_prompt=is_prompt)

    def _features_in(self, span: Span, marks: list[bool]) -> list[Tensor]:
        """Features (tokens, hidden) of the image tokens of a span, whose places are marked."""
        start, end = span.start, span.start + len(span.ids)
        rows = []
        for number, tile in enumerate(span.sequence.tiles):
            if tile.start < end and start < tile.end:
                first, last = max(tile.start, start), min(tile.end, end)
                marks[first - start : last - start] = [True] * (last - first)
                features = self._features[span.sequence][number]
                rows.append(features[first - tile.start : last - tile.start])
        return rows
