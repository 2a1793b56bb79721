"""What the model computes next: the policy of the batch, without torch, to be read in one sitting.

Every step
1. lets waiting sequences in, in the order of their arrival, as long as there are seats and blocks;
2. gives each sequence that is writing its next token, and reads what is guessed to follow it;
3. spends what is left of the step on prompts: at least half on the oldest, the rest on those that
   are done soonest. Reading a token costs 1; encoding a tile costs as much as reading its tokens.

So a page of 13 tiles does not stop those that are writing, and short questions pass long ones.

Nothing starves, by the order of arrival. When blocks run out, the youngest sequence gives its own
back and waits again (what it had computed can still be found, until others need the place). The
oldest is therefore never sent back, and as it can have the whole store for itself, it ends.
Sequences are let in by their order too, with one exception: one whose prefix is being read by
another this moment waits for it, and is passed meanwhile, instead of reading the same once more.

A conversation that waits for its next question holds its blocks. It loses them, the one that has
waited longest first, before anybody who runs has to give way.
"""

from __future__ import annotations

import weakref
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ivl.engine.blocks import BlockKey, BlockPool, Sequence
from ivl.model.cache import BLOCK_TOKENS, num_blocks_for


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` of a sequence; after the last of its tokens a new one is chosen.

    `guesses` are read with the last token: those that turn out right need no step of their own.
    """

    sequence: Sequence
    num_tokens: int
    guesses: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        return self.sequence.num_computed

    @property
    def chooses(self) -> bool:
        return self.num_tokens == self.sequence.num_remaining


@dataclass(slots=True)
class StepPlan:
    """One step: tiles to encode first, then tokens to read in one pass."""

    tiles: list[tuple[Sequence, int]] = field(default_factory=list)
    """A sequence, and the number of one of its tiles."""
    chunks: list[Chunk] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tiles or self.chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """How much one step may do.

    `max_sequences` run at once. A step reads `idle_tokens`, or `busy_tokens` (those that are
    written included) while somebody is waiting for the next token of an answer. `tiles_first`: all
    tiles of a prompt are encoded in its first step, for one person has nobody to wait for.
    """

    max_sequences: int
    idle_tokens: int
    busy_tokens: int
    tiles_first: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.max_sequences < self.busy_tokens <= self.idle_tokens


class Scheduler:
    """The sequences that wait and that run, and whose turn it is.

    One thread calls `plan`, computes it, says so with `computed`, and adds the chosen tokens to the
    sequences; between two steps it may `add`, `remove` and `hold`.
    """

    def __init__(
        self,
        pool: BlockPool,
        limits: StepLimits,
        is_known: Callable[[bytes], bool] = lambda digest: False,
    ) -> None:
        """`is_known`: whether a tile of this digest needs no encoding."""
        self.pool, self.limits, self.is_known = pool, limits, is_known
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preempted = 0
        self._num_added = 0
        self._held: list[tuple[Sequence, weakref.ref[object]]] = []

    def add(self, sequence: Sequence) -> None:
        """A new sequence, behind all others. The whole store must hold it at its longest."""
        assert sequence.most_blocks <= self.pool.num_blocks
        sequence.arrival = self._num_added
        self._num_added += 1
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """The sequence has ended, or is not wanted any more, wherever it stands."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self._release(sequence)

    def hold(self, sequence: Sequence, owner: object) -> None:
        """The sequence has ended, and keeps its blocks for what its owner asks next: as long as
        there is such an owner, and nobody needs them more."""
        self.running = [one for one in self.running if one is not sequence]
        self.waiting = [one for one in self.waiting if one is not sequence]
        self._held.append((sequence, weakref.ref(owner)))

    def resume(self, held: Sequence, sequence: Sequence) -> None:
        """`sequence`, which is new, begins with what is held, and takes its blocks."""
        self._held = [(one, owner) for one, owner in self._held if one is not held]
        sequence.take_over(held)

    def cut(self, sequence: Sequence, num_tokens: int) -> None:
        """Keeps the first tokens of a sequence that is held."""
        self.pool.release(sequence.cut(num_tokens))

    def room_for_guesses(self, sequence: Sequence, most: int) -> int:
        """How many tokens can be read behind the last one; takes blocks for them, if there are more
        than all others need to grow."""
        while (room := len(sequence.blocks) * BLOCK_TOKENS - len(sequence.ids)) < most:
            if not self.pool.can_allocate(1 + len(self.running)):
                break
            sequence.blocks += self.pool.allocate(1)
        return max(0, min(room, most))

    def plan(self) -> StepPlan:
        """The next step; empty only when nothing waits or runs."""
        self._drop_orphans()
        self._admit()
        plan = StepPlan()
        writing = [s for s in self.running if s.is_writing]
        # Guesses must not keep the prompts of others from being read.
        if sum(1 + len(s.guesses) for s in writing) >= self.limits.busy_tokens:
            for sequence in writing:
                sequence.guesses = []
        for sequence in writing:
            if sequence in self.running and self._grow(sequence):
                plan.chunks.append(Chunk(sequence, 1, tuple(sequence.guesses)))
        # Blocks for the others may have been those of a sequence that was planned already.
        plan.chunks = [chunk for chunk in plan.chunks if chunk.sequence in self.running]
        self._plan_prompts(plan)
        assert plan or not (self.waiting or self.running)
        return plan

    def computed(self, plan: StepPlan) -> list[Sequence]:
        """The plan has been carried out. Returns the sequences that get a token now."""
        for sequence, tile in plan.tiles:
            sequence.num_encoded = max(sequence.num_encoded, tile + 1)
        chosen = [chunk.sequence for chunk in plan.chunks if chunk.chooses]
        for chunk in plan.chunks:
            chunk.sequence.num_computed += chunk.num_tokens
            self._register(chunk.sequence)
        return chosen

    def _drop_orphans(self) -> None:
        """Blocks of conversations that nobody can go on with."""
        for entry in [entry for entry in self._held if entry[1]() is None]:
            self._held.remove(entry)
            self._release(entry[0])

    def _can_allocate(
        self, num_blocks: int, shared: list[int] | None = None, asking: Sequence | None = None
    ) -> bool:
        """As of the pool, once those that hold blocks and do not run have given theirs, but for
        the one that asks."""
        while not self.pool.can_allocate(num_blocks, shared or ()):
            idle = [one for one, _ in self._held] + self.waiting[::-1]
            holding = next((one for one in idle if one.blocks and one is not asking), None)
            if holding is None:
                return False
            self._release(holding)
        return True

    def _admit(self) -> None:
        promised: set[BlockKey] | None = None
        for sequence in list(self.waiting):
            if len(self.running) >= self.limits.max_sequences:
                return
            if promised is None:
                promised = self._promised()
            # The last token is read in any case: the next one is chosen from its logits.
            keys = sequence.keys_up_to(len(sequence.ids) - 1)
            shared = [] if sequence.blocks else self.pool.match(keys)
            if not sequence.blocks and len(shared) < len(keys) and keys[len(shared)] in promised:
                continue
            num_new = num_blocks_for(len(sequence.ids)) - len(shared) - len(sequence.blocks)
            spare = len(self.running)  # a block for each of the others to grow into
            if not self._can_allocate(num_new + spare, shared, sequence):
                return
            self._let_in(sequence, shared, num_new)
            promised.update(keys[len(shared) :])

    def _let_in(self, sequence: Sequence, shared: list[int], num_new: int) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=lambda s: s.arrival)
        if sequence.blocks:  # of the conversation that it goes on with
            sequence.blocks += self.pool.allocate(num_new)
            return
        self.pool.share(shared)
        sequence.blocks = shared + self.pool.allocate(num_new)
        sequence.num_registered = len(shared)
        sequence.num_computed = len(shared) * BLOCK_TOKENS
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_cached = sequence.num_computed
        sequence.num_encoded = sum(tile.end <= sequence.num_computed for tile in sequence.tiles)

    def _promised(self) -> set[BlockKey]:
        """Keys of blocks that sequences are going to fill as they read their prompts."""
        return {
            key
            for sequence in self.running
            if not sequence.is_writing
            for key in sequence.keys_up_to(len(sequence.ids) - 1)[sequence.num_registered :]
        }

    def _grow(self, sequence: Sequence) -> bool:
        """Makes room for one more token; False when the sequence itself had to give way."""
        if num_blocks_for(len(sequence.ids)) <= len(sequence.blocks):
            return True
        while not self._can_allocate(1):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.blocks += self.pool.allocate(1)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        insort(self.waiting, sequence, key=lambda s: s.arrival)
        self.num_preempted += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.restart()

    def _register(self, sequence: Sequence) -> None:
        """Lets others find the blocks that have become full."""
        if sequence.num_computed < (sequence.num_registered + 1) * BLOCK_TOKENS:
            return
        keys = sequence.keys_up_to(sequence.num_computed)
        for index in range(sequence.num_registered, len(keys)):
            self.pool.register(sequence.blocks[index], keys[index])
        sequence.num_registered = max(sequence.num_registered, len(keys))

    def _plan_prompts(self, plan: StepPlan) -> None:
        reading = [s for s in self.running if not s.is_writing]
        if not reading:
            return
        limits = self.limits
        written = sum(1 + len(chunk.guesses) for chunk in plan.chunks)
        left = limits.busy_tokens - written if written else limits.idle_tokens
        oldest, *others = reading
        others.sort(key=lambda s: s.num_remaining)
        share = left - left // 2 if others else left
        turn = _Turn(oldest, plan, self.is_known, limits.tiles_first)
        left -= turn.spend(share, at_least_once=True)
        for other in others:
            if left <= 0:
                break
            other_turn = _Turn(other, plan, self.is_known, limits.tiles_first)
            left -= other_turn.spend(left)
            other_turn.close()
        turn.spend(left)
        turn.close()


class _Turn:
    """What a prompt gets of one step: tiles and tokens in the order of the prompt."""

    def __init__(
        self,
        sequence: Sequence,
        plan: StepPlan,
        is_known: Callable[[bytes], bool],
        tiles_first: bool,
    ) -> None:
        self.sequence, self.plan, self.is_known = sequence, plan, is_known
        self.num_tokens = 0
        self.num_encoded = sequence.num_encoded
        if tiles_first:
            plan.tiles += [(sequence, n) for n in range(self.num_encoded, len(sequence.tiles))]
            self.num_encoded = len(sequence.tiles)

    def spend(self, budget: int, *, at_least_once: bool = False) -> int:
        """Plans as much as `budget` pays for, in tokens; returns what it has cost.

        `at_least_once`: the first tile may cost more than there is.
        """
        spent = 0
        for cost, is_tile in self._steps():
            if is_tile:
                if spent + cost > budget and not (at_least_once and spent == 0):
                    break
                self.plan.tiles.append((self.sequence, self.num_encoded))
                self.num_encoded += 1
                spent += cost
            else:
                taken = min(cost, budget - spent)
                if taken <= 0:
                    break
                self.num_tokens += taken
                spent += taken
        return spent

    def close(self) -> None:
        if self.num_tokens:
            self.plan.chunks.append(Chunk(self.sequence, self.num_tokens))

    def _steps(self) -> Iterator[tuple[int, bool]]:
        """What comes next, as (cost, whether it is a tile), while it is being taken."""
        sequence = self.sequence
        while True:
            position = sequence.num_computed + self.num_tokens
            if self.num_encoded < len(sequence.tiles):
                tile = sequence.tiles[self.num_encoded]
                if position < tile.start:
                    yield tile.start - position, False
                else:
                    yield (0 if self.is_known(tile.digest) else tile.num_tokens), True
            elif position < sequence.chunk_end:
                yield sequence.chunk_end - position, False
            else:
                return
