"""Speculative decoding: tokens are guessed ahead, and the model reads several in one pass.

What comes out has exactly the distribution of the model alone (Leviathan et al., 2023,
arXiv:2211.17192; Chen et al., 2023, arXiv:2302.01318): a guess x, drawn from q, stays with
probability min(1, p(x) / q(x)), and the first that does not is replaced by a draw from what p has
more than q. Without a temperature p is certain of one token, so the tokens are those that the model
writes alone, as far as it computes the same for one token as for several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ivl.config import ModelConfig
from ivl.engine.options import DEFAULT_DRAFT_TOKENS
from ivl.engine.request import TokenizedPrompt
from ivl.engine.sampling import Sampler
from ivl.errors import ConfigError
from ivl.model.cache import KVCache, Segment
from ivl.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ivl.engine.engine import Engine

LOOKUP = "lookup"
"""In the place of a model's name: guesses from the text so far."""
LONGEST_MATCH, SHORTEST_MATCH = 4, 2


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens; `probabilities` (vocab,) float32 that each was drawn from. None: from none,
    they were certain."""

    tokens: list[int]
    probabilities: list[Tensor] | None = None


def verify(sampler: Sampler, logits: Tensor, draft: Draft) -> Iterator[int]:
    """The tokens that the model writes in the place of a draft: at least one, and at most one more
    than were guessed.

    logits (guesses + 1, vocab) float32: the model's before each guess and after the last. A token
    counts as chosen (`Sampler.record`) when it is asked for; who stops asking loses the rest.
    """
    for number, guess in enumerate(draft.tokens):
        if sampler.options.temperature == 0:
            token = sampler.choose(logits[number])
        else:
            q = None if draft.probabilities is None else draft.probabilities[number]
            token = _keep_or_replace(sampler, sampler.probabilities(logits[number]), guess, q)
        yield token
        if token != guess:
            return
    yield sampler.choose(logits[-1])


def _keep_or_replace(sampler: Sampler, p: Tensor, guess: int, q: Tensor | None) -> int:
    """One token of the distribution p (vocab,), which is the guess as often as can be."""
    at_guess = 1.0 if q is None else float(q[guess])
    chance = float(torch.rand((), generator=sampler.generator, dtype=torch.float64))
    token = guess
    if chance * at_guess >= float(p[guess]):
        if q is None:
            rest = p.clone()
            rest[guess] = 0
        else:
            rest = (p - q).clamp_(min=0)
        # Nothing is left only where rounding says so: p and q are the same.
        token = sampler.draw(rest if float(rest.sum()) > 0 else p)
    sampler.record(token)
    return token


class Drafter(ABC):
    """Guesses the tokens of one conversation."""

    @abstractmethod
    def begin(
        self, before: Sequence[int], prompt: TokenizedPrompt, tiles: np.ndarray | None
    ) -> None:
        """A turn begins: `prompt`, with its tiles, comes behind the tokens `before`."""

    @abstractmethod
    def propose(self, tokens: Sequence[int], most: int, sampler: Sampler) -> Draft:
        """At most `most` guesses of what follows all tokens of the conversation so far."""


class PromptLookup(Drafter):
    """Guesses that what followed the last few tokens earlier follows them again: the longest such
    match, the latest of them (A. Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding)."""

    def begin(
        self, before: Sequence[int], prompt: TokenizedPrompt, tiles: np.ndarray | None
    ) -> None:
        """Nothing to prepare: all that counts is in the tokens."""

    def propose(self, tokens: Sequence[int], most: int, sampler: Sampler) -> Draft:
        text = np.asarray(tokens)
        for length in range(min(LONGEST_MATCH, len(text) - 1), SHORTEST_MATCH - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
            found = np.flatnonzero((windows == text[-length:]).all(axis=1))
            if len(found):
                start = int(found[-1]) + length
                return Draft(text[start : start + most].tolist())
        return Draft([])


class DraftModel(Drafter):
    """A smaller model that reads the same tokens and sees the same tiles."""

    def __init__(self, engine: Engine, vocab_size: int, context: int) -> None:
        """`vocab_size` of the logits of the model that is guessed for, `context` its context."""
        self._engine, self._vocab_size = engine, vocab_size
        self._cache: KVCache = engine.model.new_cache(context)
        self._read: list[int] = []  # what the cache holds
        self._certain = 0  # so many of them cannot have changed since

    @torch.inference_mode()
    def begin(
        self, before: Sequence[int], prompt: TokenizedPrompt, tiles: np.ndarray | None
    ) -> None:
        model = self._engine.model
        self._forget_all_but(before)
        missing = list(before[len(self._read) :])
        ids = torch.tensor([*missing, *prompt.ids], device=model.device)
        is_image = torch.tensor([False] * len(missing) + prompt.is_image, device=model.device)
        features = None
        if tiles is not None:
            features = model.encode_tiles(torch.from_numpy(tiles), self._engine.vision_batch)
        x = model.embed(ids, is_image, features)
        model.prefill(x, self._cache, chunk_tokens=self._engine.prefill_chunk)
        self._read = [*before, *prompt.ids]
        self._certain = len(self._read)

    @torch.inference_mode()
    def propose(self, tokens: Sequence[int], most: int, sampler: Sampler) -> Draft:
        model = self._engine.model
        self._forget_all_but(tokens)
        # The last token's logits are wanted even if it was read as a guess.
        if len(self._read) == len(tokens):
            del self._read[-1]
            self._cache.truncate(len(self._read))
        unread = list(tokens[len(self._read) :])
        own, guesses, probabilities = sampler.copy(), [], []
        for _ in range(most):
            x = model.decoder.embed(torch.tensor(unread, device=model.device))
            logits = model.extend(x, [Segment(self._cache, len(unread))], [1])[0]
            self._read += unread
            logits = _of_length(logits, self._vocab_size)
            if own.options.temperature == 0:
                guess = own.choose(logits)
            else:
                probabilities.append(own.probabilities(logits))
                guess = own.draw(probabilities[-1])
                own.record(guess)
            guesses.append(guess)
            unread = [guess]
        self._certain = len(tokens)
        return Draft(guesses, probabilities or None)

    def _forget_all_but(self, tokens: Sequence[int]) -> None:
        """Keeps what was read and is the beginning of `tokens`."""
        most = min(len(self._read), len(tokens))
        same = min(self._certain, most)
        while same < most and self._read[same] == tokens[same]:
            same += 1
        del self._read[same:]
        self._cache.truncate(same)
        self._certain = same


def _of_length(logits: Tensor, length: int) -> Tensor:
    """Logits of a vocabulary that is padded otherwise; what is added never comes."""
    if len(logits) < length:
        return torch.nn.functional.pad(logits, (0, length - len(logits)), value=-torch.inf)
    return logits[:length]


def check_draft(tokenizer: Tokenizer, config: ModelConfig, draft: Engine) -> None:
    """ConfigError unless the draft model has the tokens of a model and sees what it sees."""
    ours, theirs = tokenizer, draft.tokenizer
    ids = range(ours.vocab_size)
    if theirs.vocab_size != ours.vocab_size or any(
        ours.token_bytes(i) != theirs.token_bytes(i) for i in ids
    ):
        raise ConfigError(
            f"The draft model has another vocabulary: {theirs.vocab_size} tokens, and the model "
            f"{ours.vocab_size}.",
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
            "The draft model does not see what the model sees: its tiles are others.",
            "Both must be models for images, with tiles of the same size.",
        )


@dataclass(frozen=True, slots=True)
class Speculation:
    """How an engine guesses ahead: with a model, or by looking up (`draft` None)."""

    draft: Engine | None
    num_tokens: int = DEFAULT_DRAFT_TOKENS

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ConfigError(
                f"draft_tokens must be at least 1, not {self.num_tokens}.",
                "The default is a good one.",
            )

    def new_drafter(self, target: Engine) -> Drafter:
        """For a new conversation with `target`."""
        if self.draft is None:
            return PromptLookup()
        return DraftModel(self.draft, target.config.decoder.vocab_size, target.context)
