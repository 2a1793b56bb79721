"""From logits to the tokens of one answer: one at a time, or several that were guessed ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions
from ivl.engine.sampling import Sampler


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
        self, logits: Tensor, draft: Draft = Draft(), likeliest: Sequence[int] | None = None
    ) -> Iterator[int]:
        """The tokens that are written in the place of a draft: at least one, and at most one more
        than were guessed.

        logits (guesses + 1, vocab) float32: the model's before each guess and after the last.
        `likeliest`: of each row the likeliest token, where that is known. A token counts as chosen
        when it is asked for; who stops asking loses the rest.
        """
        for place, row in enumerate(logits):
            guess = draft.tokens[place] if place < len(draft.tokens) else None
            if likeliest is not None and self.is_plainly_greedy:
                token = likeliest[place]
            else:
                token = self._choose(row, guess, place, draft)
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
