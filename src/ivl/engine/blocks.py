"""Which blocks of the key/value store are whose: counted references, shared prefixes, eviction.

A block that is full never changes, so sequences that begin alike share it; the last, growing block
of a sequence is its own. A block that nobody refers to keeps its content, and can be found by its
key, until its place is needed: the least recently used goes first.

Source: PagedAttention (Kwon et al., 2023, arXiv:2309.06180); here without torch and without bytes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

BlockKey = bytes


def chain_key(
    parent: BlockKey, ids: Sequence[int], tiles: Sequence[tuple[int, bytes, int]]
) -> BlockKey:
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

    def match(self, keys: Sequence[BlockKey]) -> list[int]:
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

    def release(self, blocks: Sequence[int]) -> None:
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
