"""Speculative decoding: tokens are guessed ahead, and the model reads several in one pass.

What comes out has exactly the distribution of the model alone (Leviathan et al., 2023,
arXiv:2211.17192; Chen et al., 2023, arXiv:2302.01318), see `ivl.engine.choosing`. Without a
temperature the tokens are those that the model writes alone, as far as it computes the same for one
token as for several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ivl.config import ModelConfig
from ivl.engine.blocks import Sequence as TokenSequence
from ivl.engine.choosing import Draft, Sampler
from ivl.engine.model_runner import LoadedModel, ModelRunner, Span
from ivl.engine.options import DEFAULT_DRAFT_TOKENS
from ivl.errors import ConfigError
from ivl.prompt.tokenizer import Tokenizer

LONGEST_MATCH, SHORTEST_MATCH = 4, 2


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """At most `most` guesses of what follows a sequence, chosen as `sampler` would choose."""

    sequence: TokenSequence
    most: int
    sampler: Sampler


class Drafter(ABC):
    """Guesses for all sequences of an engine. What it need not know of changes nothing."""

    @abstractmethod
    def propose(self, wishes: Sequence[DraftRequest]) -> list[Draft]:
        """Guesses for each. There are blocks for them."""

    def encode(self, tiles: Iterable[tuple[TokenSequence, int]]) -> None:  # noqa: B027
        """The model has looked at these tiles, given as of `ModelRunner.encode`."""

    def read(self, spans: Iterable[Span]) -> None:  # noqa: B027
        """The model has read these parts of prompts."""

    def go_on(self, held: TokenSequence, sequence: TokenSequence) -> None:  # noqa: B027
        """`sequence`, which is new, begins with what is held, and will have its blocks."""

    @abstractmethod
    def forget(self, sequence: TokenSequence) -> None:
        """The sequence has ended; something may go on from it."""


class PromptLookup(Drafter):
    """Guesses that what followed the last few tokens earlier follows them again: the longest such
    match, the latest of them (A. Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding)."""

    def __init__(self) -> None:
        self._followers: WeakKeyDictionary[TokenSequence, _Followers] = WeakKeyDictionary()

    def propose(self, wishes: Sequence[DraftRequest]) -> list[Draft]:
        drafts = []
        for wish in wishes:
            ids = wish.sequence.ids
            found = self._followers.setdefault(wish.sequence, _Followers()).find(ids)
            drafts.append(Draft(ids[found : found + wish.most] if found is not None else ()))
        return drafts

    def forget(self, sequence: TokenSequence) -> None:
        self._followers.pop(sequence, None)


class _Followers:
    """For every run of a few tokens of a text that grows, the place of what followed it last."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._num_known = 0

    def find(self, ids: Sequence[int]) -> int | None:
        """The place of what followed the last tokens when they stood in the text before."""
        lengths = range(SHORTEST_MATCH, LONGEST_MATCH + 1)
        for place in range(self._num_known, len(ids)):
            for length in lengths:
                if place >= length:
                    self._places[tuple(ids[place - length : place])] = place
        self._num_known = len(ids)
        for length in reversed(lengths):
            if len(ids) > length and (found := self._places.get(tuple(ids[-length:]))):
                return found
        return None


class DraftModel(Drafter):
    """A smaller model that reads the same tokens and sees the same tiles.

    Its keys and values lie in blocks of the same numbers as the model's, so that it shares the same
    beginnings. Where it was not asked for a while it has not read everything of a block that others
    find; its guesses are worse there, and what is written is the same.
    """

    def __init__(
        self, draft: LoadedModel, num_blocks: int, vocab_size: int, *, reserve: bool = False
    ) -> None:
        """`vocab_size` of the logits of the model that is guessed for; `reserve`: all memory is
        taken now."""
        self._vocab_size = vocab_size
        self._runner = ModelRunner(
            draft.model,
            num_blocks,
            vision_batch=draft.vision_batch,
            reserve=reserve,
        )
        self._read: WeakKeyDictionary[TokenSequence, tuple[int, list[int]]] = WeakKeyDictionary()
        """How many tokens are read that cannot change, and what was read behind them as a guess."""

    @torch.inference_mode()
    def encode(self, tiles: Iterable[tuple[TokenSequence, int]]) -> None:
        self._runner.encode(tiles)

    @torch.inference_mode()
    def read(self, spans: Iterable[Span]) -> None:
        ends = {span.sequence: span.start + len(span.ids) for span in spans}
        if not ends:
            return
        starts = {one: min(self._num_certain(one), end) for one, end in ends.items()}
        self._runner.read(
            Span(one, starts[one], one.ids[starts[one] : end], 0) for one, end in ends.items()
        )
        for sequence, end in ends.items():
            self._read[sequence] = (end, [])
            self._runner.forget(sequence, end)

    @torch.inference_mode()
    def propose(self, wishes: Sequence[DraftRequest]) -> list[Draft]:
        samplers = [wish.sampler.copy() for wish in wishes]
        guesses: list[list[int]] = [[] for _ in wishes]
        probabilities: list[list[Tensor]] = [[] for _ in wishes]
        unread = [self._unread(wish.sequence) for wish in wishes]
        for depth in range(max(wish.most for wish in wishes)):
            going = [number for number, wish in enumerate(wishes) if wish.most > depth]
            logits = self._runner.read([unread[number] for number in going])
            for row, number in zip(logits, going, strict=True):
                sampler, sequence = samplers[number], wishes[number].sequence
                # What it says of what it has not read may be no number.
                scores = _of_length(row.nan_to_num(), self._vocab_size)
                if sampler.options.temperature == 0:
                    guess = sampler.choose(scores)
                else:
                    probabilities[number].append(sampler.probabilities(scores))
                    guess = sampler.draw(probabilities[number][-1])
                    sampler.record(guess)
                guesses[number].append(guess)
                unread[number] = Span(sequence, len(sequence.ids) + depth, [guess], 1)
        for wish, guessed in zip(wishes, guesses, strict=True):
            self._read[wish.sequence] = (len(wish.sequence.ids), guessed[:-1])
        return [
            Draft(*pair) for pair in zip(guesses, [p or None for p in probabilities], strict=True)
        ]

    def _unread(self, sequence: TokenSequence) -> Span:
        """What has come since it was last asked. The last token is read in any case: what follows
        it is wanted, even if it was read as a guess."""
        start = min(self._num_certain(sequence), len(sequence.ids) - 1)
        return Span(sequence, start, sequence.ids[start:], 1)

    def _num_certain(self, sequence: TokenSequence) -> int:
        """How many of the first tokens are read as they are."""
        start, guessed = self._read.get(sequence, (sequence.num_computed, []))
        for guess, token in zip(guessed, sequence.ids[start:], strict=False):
            if guess != token:
                break
            start += 1
        return start

    def go_on(self, held: TokenSequence, sequence: TokenSequence) -> None:
        self._read[sequence] = (min(self._num_certain(held), held.num_computed), [])

    def forget(self, sequence: TokenSequence) -> None:
        self._runner.forget(sequence)


def _of_length(logits: Tensor, length: int) -> Tensor:
    """Logits of a vocabulary that is padded otherwise; what is added never comes."""
    if len(logits) < length:
        return torch.nn.functional.pad(logits, (0, length - len(logits)), value=-torch.inf)
    return logits[:length]


def check_draft(tokenizer: Tokenizer, config: ModelConfig, draft: LoadedModel) -> None:
    """ConfigError unless the draft model has the tokens of a model and sees what it sees."""
    ours, theirs = tokenizer, draft.tokenizer
    ids = range(ours.vocab_size)
    if theirs.vocab_size != ours.vocab_size or any(
        ours.token_bytes(i) != theirs.token_bytes(i) for i in ids
    ):
        raise ConfigError(
            f"The draft model has a different vocabulary: {theirs.vocab_size} tokens, and the "
            f"model has {ours.vocab_size}.",
            "Of the official sizes, 1b, 4b, 38b and 78b share one, and 2b, 8b and 26b another; "
            '`draft="lookup"` needs no model.',
        )
    if config.vision is None:
        return
    if (draft.config.vision is None) or (draft.config.tile_px, draft.config.tokens_per_tile) != (
        config.tile_px,
        config.tokens_per_tile,
    ):
        raise ConfigError(
            "The draft model does not see what the model sees: its tiles differ.",
            "Both must be models for images, with tiles of the same size.",
        )


@dataclass(frozen=True, slots=True)
class Speculation:
    """How an engine guesses ahead: with a model, or by looking up (`draft` None)."""

    draft: LoadedModel | None
    num_tokens: int = DEFAULT_DRAFT_TOKENS

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ConfigError(
                f"draft_tokens must be at least 1, not {self.num_tokens}.",
                f"The default is {DEFAULT_DRAFT_TOKENS}.",
            )

    def new_drafter(self, num_blocks: int, vocab_size: int, *, reserve: bool) -> Drafter:
        """For an engine with so many blocks, whose model has logits of `vocab_size`."""
        if self.draft is None:
            return PromptLookup()
        return DraftModel(self.draft, num_blocks, vocab_size, reserve=reserve)
