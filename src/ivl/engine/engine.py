"""The engine: one model, one store of keys and values, one loop.

Requests join and leave at every step. Who wants an answer drives the steps: a conversation does it
while it is iterated over (`conversation.py`), a service in a thread of its own (`service.py`). What
a step computes is `scheduler.py`'s to say.

engine = Engine(model, tokenizer, context=8192)
generation = Conversation(engine).ask("What is the total?", ["receipt.png"])
for piece in generation: ...
generation.answer.timings
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from ivl.engine.answer import Listener
from ivl.engine.blocks import BlockPool, Sequence
from ivl.engine.choosing import are_finite, likeliest, not_finite
from ivl.engine.containment import Failure, attempt, contained
from ivl.engine.grammar import GrammarCompiler
from ivl.engine.model_runner import VISION_CACHE_BYTES, ModelRunner, Span
from ivl.engine.request import EngineRequest, RunningRequest
from ivl.engine.scheduler import Chunk, Scheduler, StepLimits, StepPlan
from ivl.engine.speculation import Drafter, DraftRequest, Speculation, check_draft
from ivl.errors import CapacityError, ConfigError, RequestError
from ivl.footprint.tensors import num_parameters
from ivl.footprint.workload import DEFAULT_VISION_BATCH, resolve_context
from ivl.model.cache import BLOCK_TOKENS, num_blocks_for
from ivl.model.internvl import InternVL
from ivl.model.source import require_own_tokenizer
from ivl.prompt.template import get_template
from ivl.prompt.tokenizer import Tokenizer

log = logging.getLogger("ivl.engine")

UNBOUNDED = 1 << 60
GUESSED_ROWS = {"cpu": 8}
"""Rows that one step may read for those who are writing, their guesses included. Beyond, a row that
is guessed in vain costs as much as one that is needed (`bench.serve --draft`; GPUs unmeasured)."""
GUESSED_ROWS_ELSEWHERE = 64

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine may hold, and how much it does at once.

    kv_tokens: tokens of all sequences whose keys and values are kept; None: of one at the full
    context. max_sequences run at once, and max_queued more may wait, as long as the tiles of all of
    them are at most max_tile_bytes. vision_cache_bytes: of features of tiles that may be shown
    again. idle_tokens and busy_tokens: as of `StepLimits`; None for what suits the device.
    for_many: people wait for each other, so that a step is short, and all memory is taken at once.
    """

    kv_tokens: int | None = None
    max_sequences: int = 16
    max_queued: int = 128
    max_tile_bytes: int = 1024**3
    vision_cache_bytes: int = VISION_CACHE_BYTES
    idle_tokens: int | None = None
    busy_tokens: int | None = None
    for_many: bool = False

    def __post_init__(self) -> None:
        for name in ("kv_tokens", "max_sequences", "idle_tokens", "busy_tokens"):
            value = getattr(self, name)
            if value is not None:
                check_at_least_one(name, value)
        if self.max_queued < 0 or self.vision_cache_bytes < 0:
            raise ConfigError("The number of queued requests and the cache cannot be negative.")

    def step_limits(self, device: torch.device) -> StepLimits:
        """A processor reads some hundred tokens a second, a GPU some thousands."""
        idle, busy = (512, 256) if device.type == "cpu" or not self.for_many else (4096, 1024)
        busy = max(self.busy_tokens or min(busy, self.idle_tokens or busy), self.max_sequences + 1)
        return StepLimits(
            max_sequences=self.max_sequences,
            idle_tokens=max(self.idle_tokens or idle, busy),
            busy_tokens=busy,
            tiles_first=not self.for_many,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """Numbers for those who watch: of now, and counted since the start."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_findable_blocks: int
    kv_bytes: int
    vision_cache_bytes: int
    tile_bytes: int = 0
    """Of all requests that run or wait."""
    num_steps: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_answer_tokens: int
    num_guessed_tokens: int
    num_kept_tokens: int
    num_encoded_tiles: int
    num_known_tiles: int
    num_preempted: int
    num_evicted_blocks: int
    busy_s: float


class Engine:
    """A loaded model with its tokenizer, its limits, and all that is being answered with it.

    A failure ends the request that it belongs to. One that belongs to none, or that is the device's
    own, is raised to whoever drives. Any thread may drive; one does at a time.
    """

    def __init__(
        self,
        model: InternVL,
        tokenizer: Tokenizer,
        *,
        context: int | None = None,
        vision_batch: int = DEFAULT_VISION_BATCH,
        speculation: Speculation | None = None,
        limits: EngineLimits | None = None,
    ) -> None:
        """`context` in tokens, question and answer together; None: the model's, at most 8192.

        `vision_batch` tiles are encoded at once, which bounds the memory of activations and changes
        nothing else. `speculation`: guesses tokens ahead; ConfigError for a draft model of another
        vocabulary.
        """
        check_at_least_one("vision_batch", vision_batch)
        require_own_tokenizer(model.config, tokenizer)
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.context = resolve_context(context, model.config)
        self.vision_batch = vision_batch
        self.template = get_template(model.config.template, model.config.system)
        ends = (tokenizer.control(name) for name in self.template.stop_control)
        self.stop_ids = tokenizer.stop_ids.union(ends)
        self.speculation = speculation
        if speculation is not None and speculation.draft is not None:
            check_draft(tokenizer, model.config, speculation.draft)
        self.limits = limits or EngineLimits()
        self._lock, self._grammar_lock = threading.RLock(), threading.Lock()
        self._grammars: GrammarCompiler | None = None
        self._requests: dict[Sequence, RunningRequest] = {}
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._busy_s = 0.0
        self._drafter: Drafter | None = None

    def with_limits(self, limits: EngineLimits) -> Engine:
        """Another engine with the same model, and a store of its own."""
        return Engine(
            self.model,
            self.tokenizer,
            context=self.context,
            vision_batch=self.vision_batch,
            speculation=self.speculation,
            limits=limits,
        )

    @property
    def num_parameters(self) -> int:
        """Of the whole model, whatever its weights' types."""
        return num_parameters(self.config)

    @property
    def grammars(self) -> GrammarCompiler:
        """Makes the forms that answers must have. It is built, in a second, when first asked for;
        meanwhile the engine goes on."""
        with self._grammar_lock:
            if self._grammars is None:
                self._grammars = GrammarCompiler(self.tokenizer, self.stop_ids)
            return self._grammars

    @cached_property
    def _runner(self) -> ModelRunner:
        """With its store, which takes memory: it is made when the first is asked for."""
        limits = self.limits
        num_blocks = num_blocks_for(limits.kv_tokens or self.context)
        runner = ModelRunner(
            self.model,
            num_blocks,
            vision_batch=self.vision_batch,
            vision_cache_bytes=limits.vision_cache_bytes,
            reserve=limits.for_many,
        )
        if self.speculation is not None:
            vocab_size = self.config.decoder.vocab_size
            self._drafter = self.speculation.new_drafter(
                num_blocks, vocab_size, reserve=limits.for_many
            )
        return runner

    @cached_property
    def _scheduler(self) -> Scheduler:
        runner = self._runner
        # No method of the engine's own: in a circle it would keep its memory when it is done with.
        return Scheduler(
            BlockPool(runner.store.num_blocks),
            self.limits.step_limits(self.model.device),
            runner.vision_cache.__contains__,
        )

    def reserve(self) -> None:
        """Takes the memory of the store now; CapacityError when there is not enough."""
        with self._lock:
            assert self._scheduler

    @property
    def max_request_tokens(self) -> int:
        """Tokens that one request may have, prompt and answer together."""
        return min(
            self.context, num_blocks_for(self.limits.kv_tokens or self.context) * BLOCK_TOKENS
        )

    def prepare(
        self, request: EngineRequest, listener: Listener, owner: object | None = None
    ) -> RunningRequest:
        """What `submit` takes; CapacityError when it alone is larger than the store.

        `owner`: keeps the blocks when it has ended, as long as it lives and nobody needs them.
        """
        running = RunningRequest(
            request,
            listener,
            self.tokenizer,
            self.stop_ids,
            num_alike=self._num_alike,
            release=self._forget,
            owner=owner,
        )
        needed = num_blocks_for(len(request.ids) + request.max_tokens)
        if needed > num_blocks_for(self.max_request_tokens):
            most = self.limits.kv_tokens or self.context
            raise CapacityError(
                f"Prompt and answer may need more than the {most} tokens of the cache.",
                "Ask for a smaller max_tokens, or start the server with a larger --kv-tokens.",
            )
        return running

    def submit(self, running: RunningRequest, held: Sequence | None = None) -> None:
        """Waits with all others for its turn. It goes on in the blocks of `held`, which must be its
        beginning."""
        with self._lock:
            scheduler = self._scheduler
            self._requests[running.sequence] = running
            if held is not None:
                if self._drafter is not None:
                    self._drafter.go_on(held, running.sequence)
                scheduler.resume(held, running.sequence)
            scheduler.add(running.sequence)

    def cancel(self, running: RunningRequest) -> None:
        """It ends as `cancelled`, if it has not ended yet."""
        with self._lock, contained(running.fail, "it was ended"):
            running.end("cancelled")

    def cut(self, sequence: Sequence, num_tokens: int) -> None:
        """Keeps the first tokens of a sequence that has ended and is held by its owner."""
        with self._lock:
            self._scheduler.cut(sequence, num_tokens)

    @torch.inference_mode()
    def step(self) -> bool:
        """Computes the next step of all requests; False when there are none."""
        with self._lock:
            began = time.perf_counter()
            self._guess()
            plan = self._scheduler.plan()
            if not plan:
                return False
            for sequence in self._scheduler.running:
                self._requests[sequence].note_admitted()
            self._counts["steps"] += 1
            self._encode(plan.tiles)
            self._read(plan)
            self._busy_s += time.perf_counter() - began
            return True

    def _guess(self) -> None:
        """Guesses for all that are writing, as far as one step can read them."""
        drafter, speculation = self._drafter, self.speculation
        writing = [one for one in self._scheduler.running if one.is_writing]
        for sequence in writing:
            sequence.guesses = []
        if drafter is None or speculation is None or not writing:
            return
        rows = GUESSED_ROWS.get(self.model.device.type, GUESSED_ROWS_ELSEWHERE)
        share = min(speculation.num_tokens, rows // len(writing) - 1)
        wishes = []
        for sequence in writing:
            running = self._requests[sequence]
            # Beyond the trained length the rotation depends on how long the sequence is.
            most = min(share, running.most_guesses, self._num_alike - len(sequence.ids))
            most = self._scheduler.room_for_guesses(sequence, most)
            if most > 0:
                wishes.append(DraftRequest(sequence, most, running.chooser.sampler))
        if not wishes:
            return
        drafts = attempt(lambda: drafter.propose(wishes))
        if isinstance(drafts, Failure):
            self._give_up_guessing(drafts.error)
            return
        for wish, draft in zip(wishes, drafts, strict=True):
            self._requests[wish.sequence].draft = draft
            wish.sequence.guesses = list(draft.tokens)

    def _give_up_guessing(self, error: BaseException) -> None:
        log.warning("guessing has failed, and the engine goes on without it", exc_info=error)
        self._drafter = None

    def _encode(self, tiles: list[tuple[Sequence, int]]) -> None:
        if not tiles:
            return
        began = time.perf_counter()
        work: dict[Sequence, list[tuple[Sequence, int]]] = {}
        for tile in tiles:
            work.setdefault(tile[0], []).append(tile)
        num_new = sum(self._compute(work, self._runner.encode, "encoding an image"))
        self._counts["tiles"] += num_new
        self._counts["known"] += len(tiles) - num_new
        if self._drafter is not None:
            drafter, seen = self._drafter, [tile for tile in tiles if tile[0] in self._requests]
            failed = attempt(lambda: drafter.encode(seen))
            if isinstance(failed, Failure):
                self._give_up_guessing(failed.error)
        elapsed = time.perf_counter() - began
        for sequence in work:
            if sequence in self._requests:
                self._requests[sequence].encode_s += elapsed

    def _read(self, plan: StepPlan) -> None:
        # Those whose images failed are gone, and nothing of theirs is read.
        planned = {c.sequence: [_span(c)] for c in plan.chunks if c.sequence in self._requests}
        logits = self._compute(planned, self._runner.read, "reading")
        done = StepPlan(
            [tile for tile in plan.tiles if tile[0] in self._requests],
            [chunk for chunk in plan.chunks if chunk.sequence in self._requests],
        )
        if self._drafter is not None:
            self._read_along(self._drafter, done.chunks)
        self._count(done.chunks)
        chosen = self._scheduler.computed(done)
        for sequence in planned:
            self._runner.forget(sequence, sequence.num_computed)
        self._choose([planned[sequence][0] for sequence in chosen], logits)

    def _read_along(self, drafter: Drafter, chunks: list[Chunk]) -> None:
        spans = [_span(chunk) for chunk in chunks if not chunk.sequence.is_writing]
        failed = attempt(lambda: drafter.read(spans))
        if isinstance(failed, Failure):
            self._give_up_guessing(failed.error)

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
            return [together]
        if len(work) > 1:
            log.warning("%s failed for %d requests together: %r", doing, len(work), together.error)
        results = []
        for sequence, items in work.items():
            alone = together if len(work) == 1 else attempt(partial(compute, items))
            if isinstance(alone, Failure):
                alone.end(self._requests[sequence].fail, doing)
            else:
                results.append(alone)
        return results

    def _choose(self, spans: list[Span], logits: list[Tensor]) -> None:
        """The next tokens of each of these, whose rows `logits` has in their order."""
        if not spans:
            return
        rows = logits[0] if len(logits) == 1 else torch.cat(logits)
        requests = [self._requests[span.sequence] for span in spans]
        finite = are_finite(rows)
        greedy: list[int] | None = None
        if any(running.chooser.is_plainly_greedy for running in requests):
            # One trip from the device for both.
            greedy, are_numbers = torch.stack([likeliest(rows), finite.to(torch.int64)]).tolist()
        else:
            are_numbers = finite.tolist()
        first = 0
        for span, running in zip(spans, requests, strict=True):
            part = slice(first, first := first + span.num_logits)
            with contained(running.fail, "its next token was chosen"):
                if not all(are_numbers[part]):
                    raise not_finite(self.model.dtype, running.num_tokens)
                kept, guessed = running.num_kept, running.num_guessed
                of_part = greedy[part] if greedy else None
                # To cut them out of the batch takes time, and most answers need no more than these.
                is_enough = of_part is not None and not running.reads_logits
                running.choose(None if is_enough else rows[part], of_part)
                self._counts["kept"] += running.num_kept - kept
                self._counts["guessed"] += running.num_guessed - guessed

    def _count(self, chunks: list[Chunk]) -> None:
        counts = self._counts
        for chunk in chunks:
            sequence = chunk.sequence
            counts["answer"] += chunk.chooses
            if not sequence.is_writing:
                counts["prompt"] += chunk.num_tokens
            if chunk.chooses and len(sequence.ids) == sequence.num_prompt_tokens:
                counts["cached"] += sequence.num_cached

    def _forget(self, running: RunningRequest) -> None:
        """It has ended."""
        sequence = running.sequence
        known = self._requests.pop(sequence, None) is not None
        if known and running.owner is not None:
            self._scheduler.hold(sequence, running.owner)
        elif known:
            self._scheduler.remove(sequence)
        if known:
            self._runner.forget(sequence)
            if self._drafter is not None:
                self._drafter.forget(sequence)

    def state(self) -> EngineState:
        """Now; read without a lock, so that numbers may be of two neighbouring steps."""
        pool, counts = self._scheduler.pool, self._counts
        return EngineState(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks=pool.num_blocks,
            num_used_blocks=pool.num_used,
            num_findable_blocks=pool.num_findable,
            kv_bytes=self._runner.store.num_bytes,
            vision_cache_bytes=self._runner.vision_cache.num_bytes,
            num_steps=counts["steps"],
            num_prompt_tokens=counts["prompt"],
            num_cached_tokens=counts["cached"],
            num_answer_tokens=counts["answer"] + counts["kept"],
            num_guessed_tokens=counts["guessed"],
            num_kept_tokens=counts["kept"],
            num_encoded_tiles=counts["tiles"],
            num_known_tiles=counts["known"],
            num_preempted=self._scheduler.num_preempted,
            num_evicted_blocks=pool.num_evicted,
            busy_s=self._busy_s,
        )

    @property
    def _num_alike(self) -> int:
        """Up to the trained length, keys do not depend on the length of the sequence."""
        decoder = self.config.decoder
        return UNBOUNDED if decoder.rope_factor is None else decoder.max_position_embeddings

    def __reduce__(self) -> NoReturn:
        """Refused before a tensor is touched: to send one, torch moves it to shared memory, and the
        kernels would go on reading where it was."""
        raise RequestError(
            "A loaded model cannot be copied, or sent to another process.",
            "Load it in each process that needs one.",
        )


_COUNTED = ("steps", "prompt", "cached", "answer", "guessed", "kept", "tiles", "known")


def _span(chunk: Chunk) -> Span:
    """What a chunk has read: of one that chooses also the guesses, and the logits of each place."""
    ids = chunk.sequence.ids[chunk.start : chunk.start + chunk.num_tokens]
    num_logits = 1 + len(chunk.guesses) if chunk.chooses else 0
    return Span(chunk.sequence, chunk.start, [*ids, *chunk.guesses], num_logits)


def check_at_least_one(name: str, value: int) -> None:
    """ConfigError for a number of things done at once that is no such number."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}.", "The default is a good one.")
