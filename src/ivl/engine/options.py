"""What a request may ask of generation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, TypedDict, runtime_checkable

from ivl.errors import RequestError
from ivl.footprint.workload import DEFAULT_VISION_BATCH as DEFAULT_VISION_BATCH
from ivl.pages.sources import DEFAULT_MAX_PIXELS as DEFAULT_MAX_PIXELS
from ivl.spelling import did_you_mean

LOOKUP = "lookup"
"""In the place of a draft model's name: tokens are guessed from the text so far."""
DEFAULT_DRAFT_TOKENS = 4
"""Tokens that are guessed at once; see `ivl.engine.speculation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Checked when made: RequestError for a value that means nothing, or is of another type.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 leave all tokens in. repetition_penalty
    weighs every token that stands in the prompt or the answer (Keskar et al., 2019,
    arXiv:1909.05858); presence_penalty and frequency_penalty those of the answer (as OpenAI's API
    defines them). logit_bias, a mapping, is added to the logits of the tokens that it names, before
    all else (as OpenAI's API defines it): -100 forbids a token. `stop`, a string or several, ends
    the answer and is not part of it.
    """

    max_tokens: int | None = None
    """At most so many tokens; None: until the context is full."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    penalty_window: int | None = None
    """repetition_penalty weighs so many of the last tokens of prompt and answer; None: all."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit); any mapping is taken."""
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "penalty_window", "seed"):
            optional = name != "top_k"
            self._set(name, _whole(name, getattr(self, name), optional=optional))
        for name in (
            *("temperature", "top_p", "min_p", "repetition_penalty"),
            *("presence_penalty", "frequency_penalty"),
        ):
            self._set(name, _number(name, getattr(self, name)))
        self._set("stop", _stop_strings(self.stop))
        self._set("logit_bias", _biases(self.logit_bias))
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1")
        _check(self.temperature >= 0, "temperature", "0 (greedy) or more")
        _check(self.top_k >= 0, "top_k", "0 (off) or more")
        _check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        _check(0 <= self.min_p < 1, "min_p", "at least 0 and below 1")
        _check(self.repetition_penalty > 0, "repetition_penalty", "above 0")
        _check((self.penalty_window or 0) >= 0, "penalty_window", "0 or more")
        _check(-2 <= self.presence_penalty <= 2, "presence_penalty", "between -2 and 2")
        _check(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "between -2 and 2")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, given: Mapping[str, object]) -> GenerationOptions:
        """From keyword arguments; an unknown one is an error that names the one that is meant."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                meant = _OTHER_NAMES.get(name)
                otherwise = f"It is called {meant!r} here." if meant else ""
                raise RequestError(
                    f"There is no option {name!r}.",
                    otherwise or did_you_mean(name, known, f"Options: {', '.join(known)}."),
                )
        return cls(**given)  # type: ignore[arg-type]

    @classmethod
    def from_any(
        cls, options: GenerationOptions | Mapping[str, object] | None
    ) -> GenerationOptions:
        """Options as they are, from a mapping, or (None) the defaults."""
        if options is None or isinstance(options, Mapping):
            return cls.of(options or {})
        if not isinstance(options, cls):
            raise RequestError(
                f"options is a {type(options).__name__}.", "Give `ivl.GenerationOptions(...)`."
            )
        return options

    def check_tokens(self, vocab_size: int) -> None:
        """RequestError when a token is named that a vocabulary of this size does not have."""
        for token, _ in self.logit_bias:
            if token >= vocab_size:
                raise RequestError(
                    f"logit_bias names the token {token}.",
                    f"This model's tokens are 0 to {vocab_size - 1}.",
                )


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions` as keyword arguments, for type checkers."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    penalty_window: int | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Iterable[str] | None
    seed: int | None


# What other programs call the same thing.
_OTHER_NAMES = {
    **dict.fromkeys(("max_new_tokens", "max_length", "max_completion_tokens"), "max_tokens"),
    **dict.fromkeys(("num_predict", "n_predict"), "max_tokens"),
    **dict.fromkeys(("stop_strings", "stop_sequences"), "stop"),
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "random_seed": "seed",
}


def _whole(name: str, value: object, *, optional: bool) -> int | None:
    """Any type of whole numbers, NumPy's too; truth values are none."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} must be a whole number, not {value!r}.")
    return int(value)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise RequestError(f"{name} must be a number, not {value!r}.")
    return float(value)


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    is_many = isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping)
    strings = tuple(value) if is_many else (None,)
    for string in strings:
        _check(isinstance(string, str) and bool(string), "stop", "a string or non-empty strings")
    return strings  # type: ignore[return-value]


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value or ()
    _check(isinstance(pairs, tuple), "logit_bias", "a mapping of token ids")
    checked = []
    for token, bias in pairs:
        bias = _number("logit_bias", bias)
        is_id = isinstance(token, Integral) and not isinstance(token, bool)
        _check(is_id and int(token) >= 0, "logit_bias", "for token ids from 0 on")
        _check(-100 <= bias <= 100, "logit_bias", "between -100 and 100")
        checked.append((int(token), bias))
    return tuple(checked)


def _check(holds: bool, name: str, allowed: str) -> None:
    if not holds:
        raise RequestError(f"{name} must be {allowed}.")


@runtime_checkable
class HasSchema(Protocol):
    """A class of pydantic's, which ivl itself does not need."""

    def model_json_schema(self) -> dict[str, object]:
        """The JSON schema of its fields."""
        ...


Schema = Mapping[str, object] | HasSchema | None
"""A JSON schema, or a class that has one."""


def schema_text(schema: Schema) -> dict[str, object]:
    """The JSON schema itself; RequestError for anything that is none."""
    if isinstance(schema, HasSchema):
        return schema.model_json_schema()
    if isinstance(schema, Mapping):
        return dict(schema)
    raise RequestError(
        f"The schema is a {type(schema).__name__}.",
        'Give a JSON schema, such as {"type": "object", ...}, or a pydantic model.',
    )
