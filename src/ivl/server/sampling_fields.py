"""The fields of OpenAI's requests that say how tokens are chosen, and what form answers have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ivl.engine.grammar import Grammar, GrammarCompiler
from ivl.engine.options import GenerationOptions
from ivl.server.bodies import Fields

Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
MAX_STOPS = 16
LogitBias = Annotated[
    dict[Annotated[int, Field(ge=0, strict=False)], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024),
]
"""What is added to the logits of tokens, by their ids (JSON has them as strings)."""
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20

NO_TOOLS = "this server does not call tools."
NO_AUDIO = "this server neither hears nor speaks."


def check_stop(stop: str | list[str] | None) -> None:
    """ValueError for more than an answer can be searched for at every token, or for an empty
    text."""
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise ValueError(f"at most {MAX_STOPS} texts of at most {MAX_STOP_CHARACTERS} characters")
    if not all(texts):
        raise ValueError("a stop text must not be empty")


class SamplingFields(Fields):
    """What several of the requests have in common.

    Without a temperature the likeliest token is taken. top_k, min_p and repetition_penalty are
    additions to OpenAI's API, with the names that other servers use too.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None

    @field_validator("stop")
    @classmethod
    def _stop_is_short(cls, stop: str | list[str] | None) -> str | list[str] | None:
        check_stop(stop)
        return stop

    def options(self, max_tokens: int | None) -> GenerationOptions:
        """The engine's options; RequestError for what means nothing."""
        chosen = {
            "temperature": self.temperature,
            # A mass of nothing leaves the likeliest token, as a top_k of 1 does.
            "top_p": self.top_p or None,
            "top_k": 1 if self.top_p == 0 else max(self.top_k or 0, 0),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "max_tokens": max_tokens,
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        return GenerationOptions.of(given)


class TextFormat(Fields):
    type: Literal["text"]


class JsonObjectFormat(Fields):
    type: Literal["json_object"]


class SchemaOf(Fields):
    """`strict` false, too, is enforced strictly."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Fields):
    type: Literal["json_schema"]
    json_schema: SchemaOf


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(Fields):
    """An addition to OpenAI's API: exactly one of these forms."""

    regex: str | None = None
    choice: list[str] | None = None
    json_: dict[str, Any] | None = Field(default=None, alias="json")

    @field_validator("choice")
    @classmethod
    def _choices_are_few(cls, choice: list[str] | None) -> list[str] | None:
        if choice is not None and not 1 <= len(choice) <= 1000:
            raise ValueError("give 1 to 1000 choices")
        return choice

    def compile(self, grammars: GrammarCompiler) -> Grammar | None:
        if self.regex is not None:
            return grammars.regex(self.regex)
        if self.choice is not None:
            return grammars.choice(self.choice)
        return None if self.json_ is None else grammars.json_schema(self.json_)

    @property
    def num_forms(self) -> int:
        return sum(form is not None for form in (self.regex, self.choice, self.json_))
