"""Many answers at once: requests join and leave the batch at every step.

batch = BatchEngine(engine, BatchLimits(kv_tokens=65536))
ticket = batch.submit(request, listener)   # from any thread; `listener` gets pieces and the ending
ticket.abort()
batch.close()

One thread computes. What it computes next is `scheduler.py`'s to say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ivl.engine.batch_request import BatchRequest, Listener
from ivl.engine.blocks import BlockPool
from ivl.engine.containment import Failure, attempt, contained
from ivl.engine.engine import LESS_VISION, Engine
from ivl.engine.running import RunningRequest
from ivl.engine.sampling import are_finite, not_finite
from ivl.engine.scheduler import Chunk, Plan, Scheduler, StepLimits
from ivl.engine.sequence import Sequence
from ivl.engine.vision_cache import VisionCache
from ivl.errors import BusyError, CapacityError, ConfigError, UnavailableError
from ivl.model.cache import BLOCK_TOKENS, num_blocks_for
from ivl.model.out_of_memory import capacity_error

log = logging.getLogger("ivl.engine")

UNBOUNDED = 1 << 60

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What the batch engine may hold; all memory is reserved when it starts.

    kv_tokens: tokens of all sequences whose keys and values are kept; None: of so many sequences
    at the full context. max_sequences run at once, and max_queued more wait, as long as the tiles
    of all of them are at most max_tile_bytes. idle_tokens and busy_tokens: as of `StepLimits`; None
    for what suits the device.
    """

    kv_tokens: int | None = None
    max_sequences: int = 16
    max_queued: int = 128
    max_tile_bytes: int = 1024**3
    vision_cache_bytes: int = 256 * 1024**2
    idle_tokens: int | None = None
    busy_tokens: int | None = None

    def step_limits(self, device: torch.device) -> StepLimits:
        """A processor reads some hundred tokens a second, a GPU some thousands."""
        idle, busy = (512, 256) if device.type == "cpu" else (4096, 1024)
        busy = max(self.busy_tokens or busy, self.max_sequences + 1)
        return StepLimits(
            max_sequences=self.max_sequences,
            idle_tokens=max(self.idle_tokens or idle, busy),
            busy_tokens=busy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """Numbers for those who watch: of now, and counted since the start."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_findable_blocks: int
    kv_bytes: int
    vision_cache_bytes: int
    tile_bytes: int
    """Tiles of all requests that run or wait."""
    num_steps: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_answer_tokens: int
    num_encoded_tiles: int
    num_known_tiles: int
    num_preempted: int
    num_evicted_blocks: int
    busy_s: float


class Ticket:
    """A request that was submitted."""

    def __init__(self, batch: BatchEngine, running: RunningRequest) -> None:
        self._batch, self._running = batch, running

    def abort(self) -> None:
        """The answer is not wanted any more: it ends as `cancelled`, soon. Safe at any time."""
        self._batch._abort(self._running)


class BatchEngine:
    """Answers many requests with one model, whose weights it shares with `engine`.

    A failure ends the request that it belongs to. One that belongs to none, or that is the device's
    own, ends the engine: `failure` has it, and every request its ending.
    """

    def __init__(self, engine: Engine, limits: BatchLimits) -> None:
        """ConfigError for limits that cannot be; CapacityError when memory is too small."""
        kv_tokens = limits.kv_tokens
        if kv_tokens is None:
            kv_tokens = limits.max_sequences * engine.context
        for name, value in (("kv_tokens", kv_tokens), ("max_sequences", limits.max_sequences)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}.")
        if limits.max_queued < 0 or limits.vision_cache_bytes < 0:
            raise ConfigError("The number of queued requests and the cache cannot be negative.")
        self.engine, self.limits, self.model = engine, limits, engine.model
        num_blocks = num_blocks_for(kv_tokens)
        with capacity_error("reserving the key/value cache", "Use a smaller --kv-tokens."):
            self._store = self.model.new_store(num_blocks)
            self._store.reserve()
        self._vision = VisionCache(limits.vision_cache_bytes)
        # No bound method: in a circle of references a closed engine would keep its memory.
        self._scheduler = Scheduler(
            BlockPool(num_blocks),
            limits.step_limits(self.model.device),
            self._vision.__contains__,
        )
        self.failure: BaseException | None = None
        self._requests: dict[Sequence, RunningRequest] = {}
        self._changed = threading.Condition()
        self._inbox: deque[RunningRequest] = deque()
        self._aborted: deque[RunningRequest] = deque()
        self._num_open = self._tile_bytes = 0
        self._closing = self._stopping = False
        self._counts = dict.fromkeys(("steps", "prompt", "cached", "answer", "tiles", "known"), 0)
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._run, name="ivl-batch", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def max_request_tokens(self) -> int:
        """Tokens that one request may have, prompt and answer together."""
        return min(self.engine.context, self._store.num_blocks * BLOCK_TOKENS)

    def submit(self, request: BatchRequest, listener: Listener) -> Ticket:
        """BusyError when too many wait already; UnavailableError when the engine is being closed,
        or has failed; CapacityError when the request alone is larger than the store."""
        return self.submit_all([request], [listener])[0]

    def submit_all(self, requests: list[BatchRequest], listeners: list[Listener]) -> list[Ticket]:
        """All of them, or none; errors as of `submit`."""
        running = [
            RunningRequest(
                request,
                listener,
                self.engine.tokenizer,
                self.engine.stop_ids,
                self._num_shareable(len(request.prompt)),
                self._num_alike,
                self._forget,
            )
            for request, listener in zip(requests, listeners, strict=True)
        ]
        if not all(self._scheduler.can_ever_run(one.sequence) for one in running):
            most = self._store.num_blocks * BLOCK_TOKENS
            raise CapacityError(
                f"Prompt and answer may need more than the {most} tokens of the cache.",
                "Ask for a smaller max_tokens, or start the server with a larger --kv-tokens.",
            )
        with self._changed:
            if not self.is_alive:
                raise self._unavailable()
            limit = self.limits.max_sequences + self.limits.max_queued
            if self._num_open + len(running) > limit:
                raise BusyError(
                    f"{self._num_open} requests are running or waiting already.",
                    "Ask again later.",
                )
            tile_bytes = self._tile_bytes + sum(one.request.tile_bytes for one in running)
            # One that is too large for itself alone would be told to come back for ever.
            if tile_bytes > self.limits.max_tile_bytes and self._num_open:
                raise BusyError("Too many images are waiting already.", "Ask again later.")
            self._tile_bytes = tile_bytes
            self._num_open += len(running)
            self._inbox.extend(running)
            self._changed.notify()
        return [Ticket(self, one) for one in running]

    def state(self) -> BatchState:
        """Now; read without a lock, so that numbers may be of two neighbouring steps."""
        pool, counts = self._scheduler.pool, self._counts
        num_running = len(self._scheduler.running)
        return BatchState(
            num_running=num_running,
            num_waiting=max(0, self._num_open - num_running),
            num_blocks=pool.num_blocks,
            num_used_blocks=pool.num_used,
            num_findable_blocks=pool.num_findable,
            kv_bytes=self._store.num_bytes,
            vision_cache_bytes=self._vision.num_bytes,
            tile_bytes=self._tile_bytes,
            num_steps=counts["steps"],
            num_prompt_tokens=counts["prompt"],
            num_cached_tokens=counts["cached"],
            num_answer_tokens=counts["answer"],
            num_encoded_tiles=counts["tiles"],
            num_known_tiles=counts["known"],
            num_preempted=self._scheduler.num_preempted,
            num_evicted_blocks=pool.num_evicted,
            busy_s=self._busy_s,
        )

    def close(self, timeout_s: float | None = None) -> bool:
        """Takes nothing new, and ends when all that was taken has been answered.

        After `timeout_s` the rest ends as `cancelled`. False when there was such a rest.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        finished = not self._thread.is_alive()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        return finished

    def _abort(self, running: RunningRequest) -> None:
        with self._changed:
            self._aborted.append(running)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._take():
                began = time.perf_counter()
                self._step(self._scheduler.plan())
                self._busy_s += time.perf_counter() - began
        except BaseException as error:
            self.failure = error
            log.exception("the engine has failed, and takes no more requests")
            raise
        finally:
            self._end_all()

    def _unavailable(self) -> UnavailableError:
        if self.failure is None:
            return UnavailableError("The server is stopping.", "Ask again when it is back.")
        return UnavailableError("The engine has failed; the server's log says why.")

    def _take(self) -> bool:
        """Waits for work and takes what has come; False when it is time to stop."""
        with self._changed:
            while not (self._inbox or self._aborted or self._requests or self._closing):
                self._changed.wait()
            arrived, aborted = list(self._inbox), list(self._aborted)
            self._inbox.clear()
            self._aborted.clear()
        for running in arrived:
            self._requests[running.sequence] = running
            self._scheduler.add(running.sequence)
        for running in aborted:
            self._cancel(running)
        if self._stopping:
            return False
        return bool(self._requests) or not self._closing

    def _end_all(self) -> None:
        """Whatever happened: every request that is still here has its ending."""
        with self._changed:
            self._closing = True
            left = [*self._requests.values(), *self._inbox]
            self._inbox.clear()
        for running in left:
            if self.failure is None:
                self._cancel(running)
            else:
                running.fail(self._unavailable())

    def _cancel(self, running: RunningRequest) -> None:
        with contained(running.fail, "it was ended"):
            running.end("cancelled")

    def _forget(self, running: RunningRequest) -> None:
        known = self._requests.pop(running.sequence, None) is not None
        self._scheduler.remove(running.sequence)
        running.features.clear()
        with self._changed:
            self._num_open -= known
            self._tile_bytes -= known * running.request.tile_bytes

    @torch.inference_mode()
    def _step(self, plan: Plan) -> None:
        for sequence in self._scheduler.running:
            self._requests[sequence].note_admitted()
        if not plan:
            return
        self._counts["steps"] += 1
        tiles: dict[Sequence, list[tuple[Sequence, int]]] = {}
        for tile in plan.tiles:
            tiles.setdefault(tile[0], []).append(tile)
        self._compute(tiles, self._encode, "encoding an image")
        # Those whose images failed are gone, and nothing of theirs is read.
        chunks = {c.sequence: [c] for c in plan.chunks if c.sequence in self._requests}
        logits = self._compute(chunks, self._read, "reading")
        done = Plan(
            [tile for tile in plan.tiles if tile[0] in self._requests],
            [chunk for chunk in plan.chunks if chunk.sequence in self._requests],
        )
        self._count(done.chunks)
        chosen = self._scheduler.computed(done)
        for chunk in done.chunks:
            self._requests[chunk.sequence].forget_features()
        self._choose(chosen, logits)

    def _compute(
        self,
        work: dict[Sequence, list[Work]],
        compute: Callable[[list[Work]], Result],
        doing: str,
    ) -> list[Result]:
        """The results of the work of several sequences, computed together, in their order.

        Where that fails each is computed alone, so that the failure ends only those that fail then
        too. What was computed before the failure is computed again, to the same places.
        """
        if not work:
            return []
        together = attempt(lambda: compute([item for items in work.values() for item in items]))
        if not isinstance(together, Failure):
            return [together.result]
        if len(work) > 1:
            log.warning("%s failed for %d requests together: %r", doing, len(work), together.error)
        results = []
        for sequence, items in work.items():
            alone = together if len(work) == 1 else attempt(partial(compute, items))
            if isinstance(alone, Failure):
                alone.end(self._requests[sequence].fail, doing)
            else:
                results.append(alone.result)
        return results

    def _encode(self, tiles: list[tuple[Sequence, int]]) -> None:
        """Gives the requests the features of their tiles, each encoded once."""
        new: dict[bytes, Tensor] = {}
        found: dict[bytes, Tensor] = {}
        for sequence, index in tiles:
            digest = sequence.tiles[index].digest
            features = self._vision.get(digest)
            if features is not None:
                found[digest] = features
            elif digest not in new:
                pixels = self._requests[sequence].request.tiles_u8
                assert pixels is not None
                new[digest] = torch.from_numpy(pixels[index])
        if new:
            with capacity_error("encoding an image", LESS_VISION):
                batch = torch.stack(list(new.values()))
                encoded = self.model.encode_tiles(batch, self.engine.vision_batch)
            for digest, features in zip(new, encoded, strict=True):
                found[digest] = features
                self._vision.put(digest, features)
        for sequence, index in tiles:
            self._requests[sequence].features[index] = found[sequence.tiles[index].digest]
        self._counts["tiles"] += len(new)
        self._counts["known"] += len(tiles) - len(new)

    def _read(self, chunks: list[Chunk]) -> Tensor:
        """Reads the chunks; float32 logits (chosen, vocab) of those that choose."""
        ids, is_image, features, segments = [], [], [], []
        for chunk in chunks:
            sequence, running = chunk.sequence, self._requests[chunk.sequence]
            part = slice(chunk.start, chunk.start + chunk.num_tokens)
            ids += sequence.ids[part]
            marks = running.request.prompt.is_image[part]
            is_image += marks + [False] * (chunk.num_tokens - len(marks))
            features += running.image_features(chunk.num_tokens) if any(marks) else []
            segments.append(running.segment(self._store, chunk.num_tokens))
        device = self.model.device
        with capacity_error("reading a batch", "Allow fewer sequences at once."):
            x = self.model.embed(
                torch.tensor(ids, device=device),
                torch.tensor(is_image, device=device),
                torch.cat(features)[None] if features else None,
            )
            num_logits = [int(chunk.chooses) for chunk in chunks]
            return self.model.extend(x[0], segments, num_logits)

    def _choose(self, chosen: list[Sequence], logits: list[Tensor]) -> None:
        """The next token of each of these, whose rows `logits` has in their order."""
        if not chosen:
            return
        rows = logits[0] if len(logits) == 1 else torch.cat(logits)
        likeliest, finite = rows.argmax(-1).tolist(), are_finite(rows).tolist()
        for index, sequence in enumerate(chosen):
            running = self._requests[sequence]
            with contained(running.fail, "its next token was chosen"):
                if not finite[index]:
                    raise not_finite(self.model.dtype, running.num_tokens)
                running.choose(rows[index], likeliest[index])

    def _count(self, chunks: list[Chunk]) -> None:
        counts = self._counts
        for chunk in chunks:
            sequence = chunk.sequence
            counts["answer"] += chunk.chooses
            if not sequence.is_writing:
                counts["prompt"] += chunk.num_tokens
            if chunk.chooses and len(sequence.ids) == sequence.num_prompt_tokens:
                counts["cached"] += sequence.num_cached

    @property
    def _num_alike(self) -> int:
        """Up to the trained length, keys do not depend on the length of the sequence."""
        decoder = self.engine.config.decoder
        return UNBOUNDED if decoder.rope_factor is None else decoder.max_positions

    def _num_shareable(self, num_prompt_tokens: int) -> int:
        """Keys beyond the trained length depend on the length of the whole prompt there."""
        return self._num_alike if num_prompt_tokens <= self._num_alike else 0
