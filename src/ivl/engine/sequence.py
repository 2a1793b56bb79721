"""One sequence of a batch: its tokens, its tiles, its blocks, and how far it has come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ivl.engine.blocks import BlockKey, chain_key
from ivl.model.cache import BLOCK_TOKENS, num_blocks_for


@dataclass(frozen=True, slots=True)
class TilePlace:
    """A tile of a prompt: where its tokens begin, how many they are, the digest of its pixels."""

    start: int
    num_tokens: int
    digest: bytes

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


def tile_digests(tiles_u8: np.ndarray | None) -> list[bytes]:
    """16 bytes for every tile of uint8 (n, tile_px, tile_px, 3): the same for the same pixels."""
    if tiles_u8 is None:
        return []
    return [
        hashlib.blake2b(np.ascontiguousarray(tile).data, digest_size=16).digest()
        for tile in tiles_u8
    ]


def place_tiles(is_image: Iterable[bool], digests: list[bytes]) -> list[TilePlace]:
    """The places of the tiles in a prompt whose image tokens `is_image` marks, in their order."""
    positions = [position for position, image in enumerate(is_image) if image]
    if not digests:
        assert not positions
        return []
    each = len(positions) // len(digests)
    return [
        TilePlace(positions[index * each], each, digest) for index, digest in enumerate(digests)
    ]


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """A prompt and what is written after it.

    `ids` grow with every token that is chosen; the keys and values of the first `num_computed` of
    them are in `blocks`. What the scheduler may share with others are the first `num_shareable`.
    Those from `num_alike` on, and beyond the prompt, are read one by one, as they were written.
    """

    ids: list[int]
    tiles: list[TilePlace] = field(default_factory=list)
    max_tokens: int
    num_shareable: int
    num_alike: int = 1 << 60
    arrival: int = -1
    """The number of the sequence; a lower one came earlier."""
    num_prompt_tokens: int = field(init=False)
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    """Tokens of the prompt that were found in the store when it was first let in."""
    num_encoded: int = 0
    """The first so many tiles are encoded, or their tokens are computed already."""
    num_registered: int = 0
    """The first so many blocks can be found by others."""
    was_admitted: bool = False
    keys: list[BlockKey] = field(default_factory=list)
    """Of the full blocks, as far as they have been asked for."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.ids)

    @property
    def num_remaining(self) -> int:
        """Tokens that have to be read before the next can be chosen; 1 while writing."""
        return len(self.ids) - self.num_computed

    @property
    def is_writing(self) -> bool:
        return self.num_computed >= self.num_prompt_tokens and self.num_remaining == 1

    @property
    def most_blocks(self) -> int:
        """Blocks that the sequence can ever need."""
        return num_blocks_for(self.num_prompt_tokens + self.max_tokens)

    @property
    def readable_end(self) -> int:
        """The tokens before here can be read: the next tile that is not encoded begins here."""
        if self.num_encoded < len(self.tiles):
            return self.tiles[self.num_encoded].start
        return len(self.ids)

    @property
    def chunk_end(self) -> int:
        """The tokens before here may be read in one chunk with the next one."""
        alike = max(self.num_prompt_tokens, self.num_alike)
        end = alike if self.num_computed < alike else self.num_computed + 1
        return min(end, len(self.ids))

    def keys_up_to(self, num_tokens: int) -> list[BlockKey]:
        """The keys of all blocks that are full with the first `num_tokens`, and may be shared."""
        num_full = min(num_tokens, self.num_shareable) // BLOCK_TOKENS
        while len(self.keys) < num_full:
            start = len(self.keys) * BLOCK_TOKENS
            parent = self.keys[-1] if self.keys else b""
            end = start + BLOCK_TOKENS
            tiles = [
                (max(tile.start, start) - start, tile.digest, max(start - tile.start, 0))
                for tile in self.tiles
                if tile.start < end and start < tile.end
            ]
            self.keys.append(chain_key(parent, self.ids[start:end], tiles))
        return self.keys[:num_full]

    def restart(self) -> None:
        """The blocks have been taken away: everything is to be read again."""
        self.blocks = []
        self.num_computed = self.num_encoded = self.num_registered = 0
