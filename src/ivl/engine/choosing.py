"""From logits to the tokens of one answer: one at a time, or several that were guessed ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions
from ivl.errors import NonFiniteError

LIKELIEST = 256
LARGEST, SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
"""What float32 holds: beyond, a division has no number for its result."""


def are_finite(logits: Tensor) -> Tensor:
    """float32 logits (..., vocab) -> bool (...): whether all of them are numbers."""
    return logits.sum(-1).isfinite()  # a sum keeps what is not, and needs no memory


def likeliest(logits: Tensor) -> Tensor:
    """float32 logits (..., vocab) -> int64 (...): the first of the likeliest tokens."""
    if logits.device.type == "cpu":  # NumPy finds it nine times as fast as torch 2.13
        return torch.from_numpy(np.asarray(logits.numpy().argmax(-1)))
    return logits.argmax(-1)


def not_finite(dtype: torch.dtype, num_tokens: int) -> NonFiniteError:
    """The error of a model of this dtype, after so many tokens of an answer."""
    after = f" after {num_tokens} tokens of the answer" if num_tokens else ""
    hint = "`ivl check` says whether its files are damaged."
    if dtype == torch.float16:
        hint = f'Numbers of float16 end at 65504: load it with `dtype="bfloat16"`. {hint}'
    kind = str(dtype).removeprefix("torch.")
    return NonFiniteError(
        f"The model has computed numbers that are not finite, in {kind}{after}.", hint
    )


class Sampler:
    """Chooses the tokens of one answer. With the same seed and logits it chooses the same ones.

    The order is that of transformers and vLLM: bias, penalties, temperature, top-k, top-p, min-p.
    """

    def __init__(self, options: GenerationOptions, prompt_ids: Iterable[int] = ()) -> None:
        self.options = options
        # All tokens, or, with a window, the last ones.
        self._seen: set[int] | deque[int] = (
            set(prompt_ids)
            if options.penalty_window is None
            else deque(prompt_ids, options.penalty_window)
        )
        self.counts: dict[int, int] = {}
        self.generator = torch.Generator()
        if options.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(options.seed % 2**63)

    @property
    def is_plainly_greedy(self) -> bool:
        """Whether the likeliest token is always the one that is chosen."""
        options = self.options
        penalties = options.presence_penalty or options.frequency_penalty
        changed = options.logit_bias or options.repetition_penalty != 1 or penalties
        return options.temperature == 0 and not changed

    def choose(self, logits: Tensor) -> int:
        """float32 logits (vocab,), on any device, which are left as they are -> a token id."""
        if self.options.temperature == 0:
            token = int(likeliest(self._penalize(logits)))
        elif logits.device.type != "cpu":
            token = self.draw_there(self._weights(self._penalize(logits)))
        else:
            token = self.draw(self.probabilities(logits))
        self.record(token)
        return token

    def record(self, token: int) -> None:
        """Counts a token as chosen."""
        if isinstance(self._seen, set):
            self._seen.add(token)
        else:
            self._seen.append(token)
        self.counts[token] = self.counts.get(token, 0) + 1

    def draw(self, probabilities: Tensor) -> int:
        """A token by float32 weights (vocab,) on the CPU, which need not add up to 1."""
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    def draw_there(self, weights: Tensor) -> int:
        """A token by float32 weights (vocab,), found on their device by a random number of the
        processor's generator. All that comes back is the token."""
        sums = weights.double().cumsum(0)
        place = torch.rand(1, generator=self.generator, dtype=torch.float64).to(sums.device)
        # The first sum above the place: a token of weight 0 adds nothing, and is never it.
        index = torch.searchsorted(sums, place * sums[-1:], right=True)
        return min(int(index), len(weights) - 1)

    def copy(self) -> Sampler:
        """One that has chosen the same tokens so far, and draws from the same random numbers."""
        other = Sampler.__new__(Sampler)
        other.options, other.generator = self.options, self.generator
        other._seen, other.counts = self._seen.copy(), dict(self.counts)
        return other

    def probabilities(self, logits: Tensor) -> Tensor:
        """What the next token is drawn from, for a temperature above 0: float32 (vocab,) on the
        CPU, not negative, and only tokens that may come above 0. They add up to 1."""
        return self._weights(self._penalize(logits).cpu())

    def _weights(self, logits: Tensor) -> Tensor:
        """`probabilities` of logits that are penalized, where they are."""
        options = self.options
        # Shifted first, so that the likeliest stays 0 whatever it is divided by; to 0 itself a
        # temperature must not be rounded.
        logits = (logits - logits.max()) / max(options.temperature, SMALLEST)
        if 0 < options.top_k < len(logits):
            logits[logits < logits.topk(options.top_k).values[-1]] = -torch.inf
        probabilities = logits.softmax(-1)
        if options.top_p < 1:
            probabilities = _keep_top_p(probabilities, options.top_p)
        if options.min_p > 0:
            probabilities[probabilities < options.min_p * probabilities.max()] = 0.0
        return probabilities / probabilities.sum()

    def _penalize(self, logits: Tensor) -> Tensor:
        options = self.options
        repeats = options.repetition_penalty != 1 and self._seen
        counts = (options.presence_penalty or options.frequency_penalty) and self.counts
        if not options.logit_bias and not repeats and not counts:
            return logits
        logits = logits.clone()
        if options.logit_bias:
            ids, biases = zip(*options.logit_bias, strict=True)
            logits[list(ids)] += torch.tensor(biases, device=logits.device)
        if repeats:
            ids = torch.tensor(sorted(set(self._seen)), device=logits.device)
            values = logits[ids]
            factor = min(max(options.repetition_penalty, SMALLEST), LARGEST)
            weighed = torch.where(values > 0, values / factor, values * factor)
            # What a grammar has forbidden stays so.
            logits[ids] = weighed.clamp(-LARGEST, LARGEST).where(values > -torch.inf, values)
        if counts:
            ids = torch.tensor(list(self.counts), device=logits.device)
            count = torch.tensor(list(self.counts.values()), device=logits.device)
            logits[ids] -= options.presence_penalty + options.frequency_penalty * count
        return logits


def _keep_top_p(probabilities: Tensor, top_p: float) -> Tensor:
    """Zeroes all but the smallest set of most probable tokens that together reach `top_p`."""
    # Sorting a vocabulary takes longer than the rest together, and few tokens mostly suffice.
    ordered, index = probabilities.topk(min(LIKELIEST, len(probabilities)))
    if ordered.sum() < top_p:
        ordered, index = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < top_p, ordered, 0.0)
    kept[0] = ordered[0]
    return torch.zeros_like(probabilities).scatter(0, index, kept)


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens; `probabilities` (vocab,) float32 that each was drawn from. None: from none,
    they were certain."""

    tokens: Sequence[int] = ()
    probabilities: list[Tensor] | None = None


class Chooser:
    """Chooses the tokens of one answer: as its options say, in a form if there is one, and of
    several places at once where the next tokens were guessed.

    Guessing changes nothing (Leviathan et al., 2023, arXiv:2211.17192): a guess x, drawn from q,
    stays with probability min(1, p(x) / q(x)), and the first that does not is replaced by a draw
    from what p has more than q.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompt_ids: Iterable[int] = (),
        *,
        stop_ids: frozenset[int] = frozenset(),
        grammar: Grammar | None = None,
    ) -> None:
        self.sampler = Sampler(options, prompt_ids)
        self._stop_ids = stop_ids
        self._rules = grammar.start() if grammar else None

    @property
    def is_plainly_greedy(self) -> bool:
        """Whether the likeliest token is chosen whatever came before."""
        return self._rules is None and self.sampler.is_plainly_greedy

    @property
    def is_complete(self) -> bool:
        """Whether the form allows nothing more."""
        return self._rules is not None and self._rules.is_complete

    def choose(
        self,
        logits: Tensor | None,
        draft: Draft = Draft(),
        likeliest: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """The tokens that are written in the place of a draft: at least one, and at most one more
        than were guessed.

        logits (guesses + 1, vocab) float32: the model's before each guess and after the last.
        `likeliest`: of each row the likeliest token, where that is known; where it is always the
        one that is chosen, nothing else is needed. A token counts as chosen when it is asked for;
        who stops asking loses the rest.
        """
        is_known = likeliest is not None and self.is_plainly_greedy
        for place in range(len(draft.tokens) + 1):
            guess = draft.tokens[place] if place < len(draft.tokens) else None
            if likeliest is not None and is_known:
                token = likeliest[place]
            else:
                assert logits is not None
                token = self._choose(logits[place], guess, place, draft)
            if self._rules is not None and token not in self._stop_ids:
                self._rules.accept(token)
            yield token
            if token != guess:
                return

    def _choose(self, row: Tensor, guess: int | None, place: int, draft: Draft) -> int:
        allowed = row if self._rules is None else self._rules.restrict(row)
        sampler = self.sampler
        if guess is None or sampler.options.temperature == 0:
            return sampler.choose(allowed)
        q = None if draft.probabilities is None else draft.probabilities[place]
        return _keep_or_replace(sampler, sampler.probabilities(allowed), guess, q)


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
