"""A request while the batch engine works on it. Only the engine's thread touches it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ivl.engine.answer import FinishReason
from ivl.engine.batch_request import (
    BatchRequest,
    BatchTimings,
    ChosenToken,
    Ended,
    Event,
    Failed,
    Listener,
    Piece,
)
from ivl.engine.containment import contained
from ivl.engine.sampling import Sampler
from ivl.engine.sequence import Sequence
from ivl.engine.stopping import StopText
from ivl.errors import IvlError
from ivl.model.cache import KVCache, KVStore, Segment
from ivl.prompt.tokenizer import StreamDecoder, Tokenizer


def _hears_nothing(event: Event) -> None:
    """In the place of a listener that has heard the ending. It may hold the ticket, and the ticket
    the request: in such a circle pictures stay until the collector comes."""


class RunningRequest:
    """Chooses the tokens of one answer, turns them into text, and tells its listener."""

    def __init__(
        self,
        request: BatchRequest,
        listener: Listener,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        num_shareable: int,
        num_alike: int,
        release: Callable[[RunningRequest], None],
    ) -> None:
        """`num_shareable` and `num_alike`: as of `Sequence`. `release` is called once, before the
        listener hears of the ending: who asks again then finds room."""
        self._release = release
        self.request, self.listener, self.stop_ids = request, listener, stop_ids
        self.sequence = Sequence(
            ids=list(request.prompt.ids),
            tiles=request.tiles,
            max_tokens=request.max_tokens,
            num_shareable=num_shareable,
            num_alike=num_alike,
        )
        self.features: dict[int, Tensor] = {}
        """Of the tiles that are about to be read, (tokens_per_tile, hidden)."""
        self.has_ended = False
        self._sampler = Sampler(request.options, request.prompt.ids)
        self._rules = request.grammar.start() if request.grammar else None
        self._decoder = StreamDecoder(tokenizer)
        self._text = StopText(request.options.stop)
        self._cache: KVCache | None = None
        self._unsent: list[tuple[ChosenToken, int]] = []
        """Tokens whose text is not decided, and how many characters there were after each."""
        self._num_characters = 0
        self._num_tokens = 0
        self._submitted = self._admitted = self._first_token = time.perf_counter()
        self._seen_admitted = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._num_tokens

    @property
    def is_plainly_greedy(self) -> bool:
        """Whether the likeliest token is chosen whatever came before."""
        return self._rules is None and self._sampler.is_plainly_greedy

    def segment(self, store: KVStore, num_tokens: int) -> Segment:
        """The next `num_tokens` of the sequence, in the cache that lies in its blocks."""
        sequence = self.sequence
        cache = self._cache
        if cache is None or cache.blocks != sequence.blocks[: len(cache.blocks)]:
            cache = self._cache = KVCache(store, sequence.blocks)
        cache.blocks.extend(sequence.blocks[len(cache.blocks) :])
        cache.length = sequence.num_computed
        # A prompt is rotated as a whole, however it is cut; what is written, token by token, also
        # when it is read again (`Sequence.chunk_end`).
        whole = max(sequence.num_prompt_tokens, sequence.num_computed + num_tokens)
        return Segment(cache, num_tokens, whole)

    def image_features(self, num_tokens: int) -> list[Tensor]:
        """Features (tokens, hidden) of the image tokens among the next `num_tokens`."""
        start = self.sequence.num_computed
        end = start + num_tokens
        rows = []
        for index, tile in enumerate(self.sequence.tiles):
            if tile.start < end and start < tile.end:
                features = self.features[index]
                rows.append(features[max(start - tile.start, 0) : end - tile.start])
        return rows

    def forget_features(self) -> None:
        """Lets go of the features of tiles whose tokens have been read."""
        for index in list(self.features):
            if self.sequence.tiles[index].end <= self.sequence.num_computed:
                del self.features[index]

    def note_admitted(self) -> None:
        if not self._seen_admitted:
            self._seen_admitted = True
            self._admitted = time.perf_counter()

    def choose(self, logits: Tensor, likeliest: int) -> None:
        """float32 logits (vocab,), and the likeliest token: takes the next one, sends what has
        become certain, and ends the answer if this token ends it."""
        if self.is_plainly_greedy:
            token = likeliest
        else:
            allowed = logits if self._rules is None else self._rules.restrict(logits)
            token = self._sampler.choose(allowed)
        if not self._num_tokens:
            self._first_token = time.perf_counter()
        if token in self.stop_ids:
            self.end("stop")
            return
        if self._rules is not None:
            self._rules.accept(token)
        self._num_tokens += 1
        self.sequence.ids.append(token)
        self._send(self._decoder.push(token), self._describe(token, logits))
        if self._text.stopped or (self._rules is not None and self._rules.is_complete):
            self.end("stop")
        elif self._num_tokens >= self.request.max_tokens:
            self.end("length")

    def end(self, reason: FinishReason) -> None:
        """Sends what was held back, and the ending."""
        if self.has_ended:
            return
        rest = self._text.push(self._decoder.finish()) + self._text.finish()
        # What a stop string cut off is not part of the answer, and nor are its tokens.
        tokens = self._take(self._text.num_settled)
        if rest or tokens:
            self.listener(Piece(rest, tokens))
        self._finish(Ended("stop" if self._text.stopped else reason, self._timings()))

    def fail(self, error: IvlError | None) -> None:
        """Ends without an answer; see `Failed`."""
        if not self.has_ended:
            self._finish(Failed(error))

    def _finish(self, ending: Ended | Failed) -> None:
        """The last event. A listener that cannot take it has no other to wait for."""
        self.has_ended = True
        self._release(self)
        listener, self.listener = self.listener, _hears_nothing
        with contained(lambda _: None, "its ending was sent"):
            listener(ending)

    def _send(self, text: str, token: ChosenToken) -> None:
        self._num_characters += len(text)
        self._unsent.append((token, self._num_characters))
        shown = self._text.push(text)
        tokens = self._take(self._text.num_settled)
        if shown or tokens:
            self.listener(Piece(shown, tokens))

    def _take(self, num_characters: int) -> tuple[ChosenToken, ...]:
        """The unsent tokens whose text lies before this character."""
        taken = [token for token, until in self._unsent if until <= num_characters]
        self._unsent = self._unsent[len(taken) :]
        return tuple(taken)

    def _describe(self, token: int, logits: Tensor) -> ChosenToken:
        count = self.request.num_logprobs
        if count is None:
            return ChosenToken(token)
        logprobs = logits.log_softmax(-1)
        values, ids = torch.topk(logprobs, count) if count else (logprobs[:0], logprobs[:0])
        top = tuple(zip(ids.long().tolist(), values.tolist(), strict=True))
        return ChosenToken(token, float(logprobs[token]), top)

    def _timings(self) -> BatchTimings:
        now = time.perf_counter()
        admitted = self._admitted if self._seen_admitted else now
        first_token = self._first_token if self._num_tokens else now
        return BatchTimings(
            queue_s=admitted - self._submitted,
            first_token_s=first_token - self._submitted,
            total_s=now - self._submitted,
            num_prompt_tokens=self.sequence.num_prompt_tokens,
            num_cached_tokens=self.sequence.num_cached,
            num_tiles=len(self.sequence.tiles),
            num_answer_tokens=self._num_tokens,
        )
