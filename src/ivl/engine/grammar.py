"""Answers that must have a form: JSON, JSON by a schema, a regular expression, one of some choices.

A grammar says before every token which ones may follow (llguidance computes that). What cannot be
enforced is refused when the grammar is made, before anything runs.
"""

from __future__ import annotations

import json
import re

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from ivl.errors import RequestError
from ivl.prompt.tokenizer import Tokenizer

MAX_GRAMMAR_CHARACTERS = 64 * 1024
LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000, max_lexer_states=50_000, max_grammar_size=200_000
)
"""A fifth of llguidance's own: what needs more takes seconds and gigabytes."""
WHITE_SPACE = r"[ \t\n]{1,16}"
"""Between the parts of JSON. Without a bound a model can write line breaks until its end."""


class Grammar:
    """A form that was checked; `start` begins a new answer in it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def start(self) -> TokenRules:
        return TokenRules(self._matcher.deep_copy())


class TokenRules:
    """Which tokens may follow those that one answer has so far."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def restrict(self, logits: Tensor) -> Tensor:
        """float32 (vocab,) -> the same with what may not follow at minus infinity."""
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(words, bitorder="little")[: len(logits)]
        allowed = torch.from_numpy(bits).bool()
        if len(allowed) < len(logits):
            allowed = torch.nn.functional.pad(allowed, (0, len(logits) - len(allowed)))
        if self._matcher.is_error():
            raise self._broken()
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def accept(self, token: int) -> None:
        """The token that was chosen; RequestError when the grammar is too much for llguidance."""
        if not self._matcher.consume_token(token):
            raise self._broken()

    @property
    def is_complete(self) -> bool:
        """Nothing can follow any more."""
        return self._matcher.is_stopped()

    def _broken(self) -> RequestError:
        return RequestError(
            f"The form of the answer cannot be followed further: "
            f"{_reason([self._matcher.get_error()])}",
            "Use a simpler schema or expression.",
        )


class GrammarCompiler:
    """Makes grammars for the tokens of one model. Building it takes a second for large ones."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, min(stop_ids)))
        self._tokenizer = LLTokenizer(
            wrapper, n_vocab=tokenizer.vocab_size, eos_token=sorted(stop_ids)
        )

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: object) -> Grammar:
        """JSON of a schema; RequestError for a schema with something that is not enforced."""
        if not isinstance(schema, dict | bool):
            raise RequestError("A JSON schema is an object.")
        text = json.dumps(schema)
        _check_length(text)
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": WHITE_SPACE}
            )
        except ValueError as error:
            raise RequestError(f"The JSON schema cannot be used: {error}") from None
        return self._compile(grammar, "JSON schema")

    def regex(self, pattern: str) -> Grammar:
        """Text that a regular expression matches from end to end."""
        _check_length(pattern)
        return self._compile(LLMatcher.grammar_from_regex(pattern), "regular expression")

    def choice(self, choices: list[str]) -> Grammar:
        """One of these texts, word for word."""
        if not choices or not all(choices):
            raise RequestError("A choice needs texts to choose from, and none may be empty.")
        _check_length("".join(choices))
        pattern = "|".join(re.escape(text) for text in choices)
        return self._compile(LLMatcher.grammar_from_regex(f"({pattern})"), "choice")

    def _compile(self, grammar: str, kind: str) -> Grammar:
        failed, messages = LLMatcher.validate_grammar_with_warnings(
            grammar, self._tokenizer, limits=LIMITS
        )
        if not failed and not messages:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
            # The first mask builds most of what all others need. Here it costs the time of who
            # asks; in the engine's thread it would be everybody's.
            first = matcher.deep_copy()
            first.compute_bitmask()
            if not matcher.is_error() and not first.is_error():
                return Grammar(matcher)
            messages = [matcher.get_error() or first.get_error()]
        raise RequestError(
            f"The {kind} cannot be enforced: {_reason(messages)}",
            "Use a simpler one, or leave out what is not supported.",
        )


def _reason(messages: list[str]) -> str:
    """The line that says what is wrong, of what llguidance says, in words."""
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    if not lines or any(line.startswith("NoExtensionBias") for line in lines):
        return "nothing has that form."
    # The parser of expressions draws where the fault is, and names it last.
    named = [line for line in lines if line.startswith("error: ")]
    return (named[-1].removeprefix("error: ") if named else lines[0])[:300]


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode_text(text)


def _check_length(text: str) -> None:
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise RequestError(
            f"The form of the answer has {len(text)} characters, and may have "
            f"{MAX_GRAMMAR_CHARACTERS}."
        )
