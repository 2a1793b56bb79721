"""Which blocks of the key/value store are whose: counted references, shared prefixes, eviction.

A block that is full never changes, so sequences that begin alike share it; the last, growing block
of a sequence is its own. A block that nobody refers to keeps its content, and can be found by its
key, until its place is needed: the least recently used goes first.

Source: PagedAttention (Kwon et al., 2023, arXiv:2309.06180); here without torch and without bytes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from ivl.model.cache import BLOCK_TOKENS, num_blocks_for

BlockKey = bytes


def chain_key(parent: BlockKey, ids: Many[int], tiles: Many[tuple[int, bytes, int]]) -> BlockKey:
    """The key of a block: of all tokens up to its end, and of what its image tokens show.

    `parent` is the key of the block before, or what all blocks of a sequence have in common.
    `tiles`: for every tile that reaches into the block the place where it does, the digest of its
    pixels, and the number of the first of its tokens that lies here. So two images of one size,
    whose token ids are the same, have no key in common.
    """
    state = hashlib.blake2b(parent, digest_size=16)
    state.update(b",".join(b"%d" % token for token in ids))
    for place, digest, offset in tiles:
        state.update(b"|%d:%d:" % (place, offset) + digest)
    return state.digest()


class BlockPool:
    """`num_blocks` blocks, each free, in use by so many sequences, or unused but still findable.

    The paired names ask before they act: `allocate(n)` must be preceded by `can_allocate(n)`.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._unused: OrderedDict[int, None] = OrderedDict()  # findable; least recently used first
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}
        self.num_evicted = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated: empty ones, and those that nobody uses now."""
        return len(self._empty) + len(self._unused)

    @property
    def num_used(self) -> int:
        """Blocks that sequences refer to."""
        return self.num_blocks - self.num_free

    @property
    def num_findable(self) -> int:
        """Blocks that a later sequence can share, used now or not."""
        return len(self._block_of)

    def match(self, keys: Many[BlockKey]) -> list[int]:
        """The blocks of the longest beginning of `keys` that is here. Changes nothing."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def can_allocate(self, num_blocks: int, shared: Iterable[int] = ()) -> bool:
        """Whether `num_blocks` can be had while the blocks `shared` are kept too."""
        revived = sum(self._references[block] == 0 for block in shared)
        return num_blocks + revived <= self.num_free

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each of the blocks that `match` found."""
        for block in blocks:
            if self._references[block] == 0:
                del self._unused[block]
            self._references[block] += 1

    def allocate(self, num_blocks: int) -> list[int]:
        """Blocks with one reference each; what was in them is no longer found."""
        assert num_blocks <= self.num_free
        blocks = []
        for _ in range(num_blocks):
            if self._empty:
                block = self._empty.pop()
            else:
                block, _ = self._unused.popitem(last=False)
                del self._block_of[self._key_of.pop(block)]
                self.num_evicted += 1
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def register(self, block: int, key: BlockKey) -> None:
        """The block is full, and this is what is in it. The first block of a key keeps it."""
        assert self._references[block] > 0
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Many[int]) -> None:
        """One reference less to each block of a sequence, given in their order.

        The last become the least recently used: a prefix is worth more than what follows it.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._unused[block] = None
                else:
                    self._empty.append(block)

    def forget(self) -> None:
        """Nothing that is unused is found any more."""
        for block in self._unused:
            del self._block_of[self._key_of.pop(block)]
            self._empty.append(block)
        self._unused.clear()


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A tile of a prompt: where its tokens begin, how many they are, the digest of its pixels, and
    these, uint8 (tile_px, tile_px, 3)."""

    start: int
    num_tokens: int
    digest: bytes
    pixels: np.ndarray | None = None

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


def place_tiles(
    is_image: Iterable[bool], tiles_u8: np.ndarray | None, first_place: int = 0
) -> list[Tile]:
    """The tiles uint8 (n, tile_px, tile_px, 3) of a prompt whose image tokens `is_image` marks, in
    their order; the prompt begins at `first_place` of its sequence. A digest has 16 bytes, the same
    for the same pixels."""
    places = [place for place, image in enumerate(is_image, first_place) if image]
    if tiles_u8 is None or not len(tiles_u8):
        assert not places
        return []
    each = len(places) // len(tiles_u8)
    return [
        Tile(
            places[number * each],
            each,
            hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest(),
            pixels,
        )
        for number, pixels in enumerate(tiles_u8)
    ]


@dataclass(eq=False, slots=True, weakref_slot=True, kw_only=True)
class Sequence:
    """A prompt and what is written after it.

    `ids` grow with every token that is chosen; the keys and values of the first `num_computed` of
    them are in `blocks`. What the scheduler may share with others are the first `num_shareable`.
    Those from `num_alike` on, and beyond the prompt, are read one by one, as they were written.
    """

    ids: list[int]
    tiles: list[Tile] = field(default_factory=list)
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
    guesses: list[int] = field(default_factory=list)
    """Of what follows `ids`, to be read with the last of them."""
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

    def take_over(self, held: Sequence) -> None:
        """Goes on where `held` has ended, in its blocks; it must begin with the same tokens."""
        assert self.ids[: held.num_computed] == held.ids[: held.num_computed]
        self.blocks, self.num_computed = held.blocks, held.num_computed
        self.num_registered, self.num_cached = held.num_registered, held.num_computed
        self.num_encoded = sum(tile.end <= self.num_computed for tile in self.tiles)
        self.was_admitted = bool(self.blocks)  # else what is found of it counts as found
        # Keys and values beyond the trained length are this conversation's own.
        if not self.num_shareable:
            self.num_shareable = min(held.num_shareable, held.num_computed)
        held.restart()

    def cut(self, num_tokens: int) -> list[int]:
        """Keeps the first tokens; returns the blocks that are not needed any more.

        A full block may be another's too, and is not written to again: it goes as a whole.
        """
        del self.ids[num_tokens:]
        if num_tokens < self.num_computed:
            self.num_computed = num_tokens
            if num_tokens // BLOCK_TOKENS < self.num_registered:
                self.num_registered = num_tokens // BLOCK_TOKENS
                self.num_computed = self.num_registered * BLOCK_TOKENS
        del self.keys[num_tokens // BLOCK_TOKENS :]
        kept = num_blocks_for(self.num_computed)
        dropped, self.blocks = self.blocks[kept:], self.blocks[:kept]
        return dropped

    def restart(self) -> None:
        """The blocks have been taken away: everything is to be read again."""
        self.blocks, self.guesses = [], []
        self.num_computed = self.num_encoded = self.num_registered = 0
