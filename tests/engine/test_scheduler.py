"""The policy of the batch, driven by random arrivals, lengths and departures, without a model.

A fake model keeps what was written into each block, so that a block that is shared wrongly, taken
too early or never given back shows as a wrong token.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl.engine.blocks import BlockPool, Sequence, Tile
from ivl.engine.scheduler import Scheduler, StepLimits, StepPlan
from ivl.model.cache import BLOCK_TOKENS

TILE_TOKENS = 40
IMAGE_ID = 7


@dataclass
class FakeModel:
    """Writes what it reads into the blocks, and checks all that came before it."""

    scheduler: Scheduler
    places: dict[tuple[int, int], object] = field(default_factory=dict)
    encoded: dict[Sequence, set[int]] = field(default_factory=dict)

    def run(self, plan: StepPlan) -> list[Sequence]:
        limits = self.scheduler.limits
        for sequence, tile in plan.tiles:
            self.encoded.setdefault(sequence, set()).add(tile)
        assert len({c.sequence for c in plan.chunks}) == len(plan.chunks)
        num_read = sum(chunk.num_tokens for chunk in plan.chunks)
        assert num_read <= limits.idle_tokens
        assert len(self.scheduler.running) <= limits.max_sequences
        for chunk in plan.chunks:
            sequence = chunk.sequence
            end = chunk.start + chunk.num_tokens
            assert chunk.num_tokens >= 1
            assert end <= len(sequence.ids)
            for position in range(chunk.start, end):
                self.places[self.place(sequence, position)] = self.content(sequence, position)
            for position in range(end):
                found = self.places[self.place(sequence, position)]
                assert found == self.content(sequence, position), "read what is not its own"
            for position, guess in enumerate(chunk.guesses, end):
                self.places[self.place(sequence, position)] = guess
        return self.scheduler.computed(plan)

    @staticmethod
    def place(sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS

    def content(self, sequence: Sequence, position: int) -> object:
        """What keys and values depend on: all tokens so far, as they look."""
        tiles = [t for t in sequence.tiles if t.start <= position]
        if tiles and position < tiles[-1].end and position >= sequence.num_computed:
            assert sequence.tiles.index(tiles[-1]) in self.encoded[sequence]
        return (tuple(sequence.ids[: position + 1]), tuple((t.start, t.digest) for t in tiles))


def make_sequence(rng: random.Random, most_tokens: int) -> Sequence:
    """Prompts that often begin alike, with tiles of a few contents, all of one size."""
    ids = [rng.randrange(3)] * rng.choice([1, 20, BLOCK_TOKENS, 3 * BLOCK_TOKENS])
    tiles = []
    for _ in range(rng.choice([0, 0, 1, 3])):
        tiles.append(Tile(len(ids), TILE_TOKENS, bytes([rng.randrange(2)])))
        ids += [IMAGE_ID] * TILE_TOKENS
    ids += [rng.randrange(8, 10) for _ in range(rng.choice([1, 5, 2 * BLOCK_TOKENS]))]
    max_tokens = rng.randint(1, 40)
    del ids[max(1, most_tokens - max_tokens) :]
    tiles = [t for t in tiles if t.end <= len(ids)]
    shareable = rng.choice([0, 70, 10**9, 10**9])
    return Sequence(ids=ids, tiles=tiles, max_tokens=max_tokens, num_shareable=shareable)


def references(scheduler: Scheduler, held: Collection[Sequence] = ()) -> list[int]:
    counts = [0] * scheduler.pool.num_blocks
    for sequence in [*scheduler.running, *held]:
        for block in sequence.blocks:
            counts[block] += 1
    return counts


class Owner:
    """Of conversations."""


def follow(held: Sequence, rng: random.Random) -> Sequence:
    """The next turn of a conversation."""
    ids = [*held.ids, *(rng.randrange(8) for _ in range(rng.randint(1, 3)))]
    shareable = held.num_shareable
    return Sequence(ids=ids, tiles=held.tiles, max_tokens=1, num_shareable=shareable)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(3, 30),
    num_sequences=st.integers(1, 14),
    max_sequences=st.integers(1, 6),
    busy=st.integers(7, 60),
    abort_every=st.sampled_from([0, 3, 10]),
)
def test_everything_ends_and_every_block_comes_back(
    seed: int,
    num_blocks: int,
    num_sequences: int,
    max_sequences: int,
    busy: int,
    abort_every: int,
) -> None:
    rng = random.Random(seed)
    limits = StepLimits(max_sequences=max_sequences, idle_tokens=2 * busy, busy_tokens=busy)
    known = rng.choice([lambda digest: False, lambda digest: digest == b"\0"])
    scheduler = Scheduler(BlockPool(num_blocks), limits, known)
    model = FakeModel(scheduler)
    coming = [make_sequence(rng, num_blocks * BLOCK_TOKENS) for _ in range(num_sequences)]
    lengths = {s: len(s.ids) + rng.randint(1, s.max_tokens) for s in coming}
    open_ones: set[Sequence] = set()
    owner, held = Owner(), []
    finished: list[Sequence] = []
    # Generous: every token of every sequence read alone, again for every time it was sent back.
    for step in range(20_000):
        while coming and rng.random() < 0.3:
            sequence = coming.pop()
            scheduler.add(sequence)
            open_ones.add(sequence)
        if abort_every and open_ones and step % abort_every == 0:
            victim = rng.choice(sorted(open_ones, key=lambda s: s.arrival))
            scheduler.remove(victim)
            open_ones.remove(victim)
            assert not victim.blocks
        for sequence in scheduler.running:
            if sequence.is_writing:
                left = lengths[sequence] - len(sequence.ids) - 1
                room = scheduler.room_for_guesses(sequence, rng.randint(0, max(0, left)))
                sequence.guesses = [rng.randrange(8, 10) for _ in range(room)]
        plan = scheduler.plan()
        assert bool(plan) == bool(open_ones)
        guessed = {chunk.sequence: chunk.guesses for chunk in plan.chunks}
        oldest = min(open_ones, key=lambda s: s.arrival, default=None)
        before = None if oldest is None else (oldest.num_computed, len(oldest.ids))
        for sequence in model.run(plan):
            for guess in [*guessed[sequence], None]:
                sequence.ids.append(rng.randrange(8, 10))
                if sequence.ids[-1] != guess or len(sequence.ids) >= lengths[sequence]:
                    break
                place = model.place(sequence, sequence.num_computed)
                model.places[place] = model.content(sequence, sequence.num_computed)
                sequence.num_computed += 1
            if len(sequence.ids) >= lengths[sequence]:
                open_ones.remove(sequence)
                finished.append(sequence)
                if rng.random() < 0.5:
                    scheduler.remove(sequence)
                    continue
                scheduler.hold(sequence, owner)
                shown = max((tile.end for tile in sequence.tiles), default=1)
                scheduler.cut(sequence, rng.randint(shown, len(sequence.ids)))
                held.append(sequence)
                if rng.random() < 0.5 and len(sequence.ids) < num_blocks * BLOCK_TOKENS - 4:
                    following = follow(sequence, rng)
                    scheduler.resume(held.pop(), following)
                    scheduler.add(following)
                    open_ones.add(following)
                    lengths[following] = len(following.ids) + following.max_tokens
        waiting = [one for one in scheduler.waiting if one.blocks]
        assert scheduler.pool._references == references(scheduler, [*held, *waiting])
        if oldest in scheduler.running and before is not None:
            done = (oldest.num_computed, len(oldest.ids))
            assert done > before or oldest.num_encoded, "the oldest stands still"
        if not coming and not open_ones:
            break
    assert not open_ones, "some never end"
    assert not scheduler.running
    assert not scheduler.waiting
    del owner
    scheduler.plan()
    assert scheduler.pool.num_used == 0
    scheduler.pool.forget()
    assert scheduler.pool.num_free == num_blocks
    if not abort_every:
        assert len(finished) >= num_sequences


def text(num_tokens: int, first: int = 0, max_tokens: int = 10) -> Sequence:
    ids = [first, *range(1, num_tokens)]
    return Sequence(ids=ids, max_tokens=max_tokens, num_shareable=10**9)


def scheduler_of(num_blocks: int = 200, **limits: int) -> Scheduler:
    chosen = {"max_sequences": 4, "idle_tokens": 128, "busy_tokens": 64, **limits}
    return Scheduler(BlockPool(num_blocks), StepLimits(**chosen))


def step(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    for sequence in scheduler.computed(plan):
        sequence.ids.append(5)
    return plan


def test_a_long_prompt_does_not_stop_those_who_are_writing() -> None:
    scheduler = scheduler_of()
    short, long = text(10), text(1000, first=99)
    scheduler.add(short)
    step(scheduler)
    scheduler.add(long)
    while long.num_computed < 1000:
        written = len(short.ids)
        plan = step(scheduler)
        assert len(short.ids) == written + 1
        assert sum(chunk.num_tokens for chunk in plan.chunks) <= 64


def test_a_short_prompt_passes_a_long_one() -> None:
    scheduler = scheduler_of()
    long, short = text(2000), text(40, first=99)
    scheduler.add(long)
    step(scheduler)
    scheduler.add(short)
    step(scheduler)
    assert short.is_writing
    assert long.num_remaining > 1000


def test_a_prefix_is_read_once_by_those_who_share_it() -> None:
    """The second waits for the first, which is reading what both begin with."""
    scheduler = scheduler_of()
    both = [text(320), text(320)]
    for sequence in both:
        scheduler.add(sequence)
    num_read = 0
    while not all(s.is_writing for s in both):
        num_read += sum(c.num_tokens for c in step(scheduler).chunks if c.num_tokens > 1)
    assert num_read == 320 + BLOCK_TOKENS  # the last block is read again: it gives the logits
    assert both[1].num_cached == 320 - BLOCK_TOKENS


def test_images_of_one_size_are_not_confused() -> None:
    def shown(digest: bytes) -> Sequence:
        tiles = [Tile(0, 64, digest)]
        return Sequence(ids=[7] * 64 + [1], tiles=tiles, max_tokens=3, num_shareable=10**9)

    first, same, other = (shown(d).keys_up_to(64) for d in (b"a", b"a", b"b"))
    assert first == same
    assert not {*first} & {*other}


def test_the_youngest_gives_way_and_comes_back() -> None:
    scheduler = scheduler_of(num_blocks=5)
    old, young = text(62, max_tokens=60), text(62, first=9, max_tokens=60)
    scheduler.add(old)
    scheduler.add(young)
    while len(old.ids) < 122:
        step(scheduler)
    assert scheduler.num_preempted == 1
    assert young in scheduler.waiting
    written = young.ids[62:]
    scheduler.remove(old)
    while len(young.ids) < 122:
        step(scheduler)
    assert young.ids[62 : 62 + len(written)] == written


def test_least_recently_used_blocks_go_first() -> None:
    pool = BlockPool(3)
    for key in (b"a", b"b", b"c"):
        [block] = pool.allocate(1)
        pool.register(block, key)
        pool.release([block])
    pool.share(pool.match([b"a"]))
    pool.release(pool.match([b"a"]))
    pool.allocate(1)
    assert [bool(pool.match([key])) for key in (b"a", b"b", b"c")] == [True, False, True]


@pytest.mark.parametrize("num_shared", [0, 2])
def test_asking_for_blocks_counts_those_that_would_be_revived(num_shared: int) -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    for block, key in zip(blocks, (b"a", b"b"), strict=True):
        pool.register(block, key)
    pool.release(blocks)
    assert pool.can_allocate(4 - num_shared, blocks[:num_shared])
    assert not pool.can_allocate(5 - num_shared, blocks[:num_shared])


def test_a_conversation_that_lost_its_blocks_finds_them_while_nobody_needed_the_place() -> None:
    scheduler, owner = scheduler_of(num_blocks=6), Owner()
    talk, other = text(100), text(70, first=9)
    scheduler.add(talk)
    while not talk.is_writing:
        step(scheduler)
    scheduler.hold(talk, owner)
    scheduler.cut(talk, 100)
    scheduler.add(other)
    step(scheduler)
    assert not talk.blocks
    scheduler.remove(other)
    following = Sequence(ids=[*talk.ids, 7, 7], max_tokens=10, num_shareable=10**9)
    scheduler.resume(talk, following)
    scheduler.add(following)
    step(scheduler)
    assert following.num_cached == 96
