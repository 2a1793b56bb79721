"""What a request may ask of generation."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ivl.errors import RequestError

DEFAULT_DRAFT_TOKENS = 4
"""Tokens that are guessed at once; see `ivl.engine.speculation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Checked when made: RequestError for a value that means nothing.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 leave all tokens in. repetition_penalty
    weighs every token that stands in the prompt or the answer (Keskar et al., 2019,
    arXiv:1909.05858); presence_penalty and frequency_penalty those of the answer (as OpenAI's API
    defines them). logit_bias, a mapping, is added to the logits of the tokens that it names, before
    all else (as OpenAI's API defines it): -100 forbids a token. `stop` strings end the answer and
    are not part of it.
    """

    max_tokens: int | None = None
    """At most so many tokens; None: until the context is full."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit); any mapping is taken."""
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        else:
            object.__setattr__(self, "stop", tuple(self.stop))
        if isinstance(self.logit_bias, Mapping):
            object.__setattr__(self, "logit_bias", tuple(self.logit_bias.items()))
        _check(isinstance(self.logit_bias, tuple), "logit_bias", "a mapping of token ids")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            _number(name, getattr(self, name))
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name))
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1")
        _check(self.temperature >= 0, "temperature", "0 (greedy) or more")
        _check(self.top_k >= 0, "top_k", "0 (off) or more")
        _check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        _check(0 <= self.min_p < 1, "min_p", "at least 0 and below 1")
        _check(self.repetition_penalty > 0, "repetition_penalty", "above 0")
        _check(-2 <= self.presence_penalty <= 2, "presence_penalty", "between -2 and 2")
        _check(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "between -2 and 2")
        for token, bias in self.logit_bias:
            _number("logit_bias", bias)
            _check(isinstance(token, int) and token >= 0, "logit_bias", "for token ids from 0 on")
            _check(-100 <= bias <= 100, "logit_bias", "between -100 and 100")
        _check(all(isinstance(s, str) and s for s in self.stop), "stop", "non-empty strings")

    @classmethod
    def of(cls, given: dict[str, Any]) -> GenerationOptions:
        """From keyword arguments; an unknown one is an error that names the nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise RequestError(
                    f"There is no option {name!r}.",
                    f"Did you mean {near[0]!r}?" if near else f"Options: {', '.join(known)}.",
                )
        return cls(**given)

    def check_tokens(self, vocab_size: int) -> None:
        """RequestError when a token is named that a vocabulary of this size does not have."""
        for token, _ in self.logit_bias:
            if token >= vocab_size:
                raise RequestError(
                    f"logit_bias names the token {token}.",
                    f"This model's tokens are 0 to {vocab_size - 1}.",
                )


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} must be a number, not {value!r}.")


def _check(holds: bool, name: str, allowed: str) -> None:
    if not holds:
        raise RequestError(f"{name} must be {allowed}.")
