"""Bodies of OpenAI's chat completions and completions.

Source: OpenAI's API reference. A field that is here works; every other is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ivl.engine.options import GenerationOptions
from ivl.prompt.tiles import LARGEST_MAX_TILES
from ivl.server.bodies import Fields
from ivl.server.foreign import COMPLETIONS
from ivl.server.sampling_fields import (
    MAX_TOP_LOGPROBS,
    NO_AUDIO,
    NO_TOOLS,
    LogitBias,
    ResponseFormat,
    SamplingFields,
    StructuredOutputs,
)

Limit = Annotated[int, Field(ge=1)] | Literal[-1]
"""Of tokens; -1, as other servers have it, is none. More than there is room for is as good."""
MaxTiles = Annotated[int, Field(ge=1, le=LARGEST_MAX_TILES)]
Detail = Literal["auto", "low", "high"]
NumChoices = Annotated[int, Field(ge=1, le=128)]


def limit_of(given: int | None) -> int | None:
    """Tokens, or None for no limit."""
    return None if given == -1 else given


class TextPart(Fields):
    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    """`detail`: low, one tile; high, as many as the model is made for; auto, a share of the
    request's tiles. `max_tiles` is an addition: a limit for this image. `format`, a media type as
    LiteLLM sends it, changes nothing: the file itself says what it is."""

    url: str
    detail: Detail | None = None
    format: str | None = None
    max_tiles: MaxTiles | None = None


class ImagePart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _plain_address(cls, given: object) -> object:
        return {"url": given} if isinstance(given, str) else given


class FileData(Fields):
    """A PDF, or an image, as a data URL. `format` as of `ImageUrl`."""

    file_data: str
    filename: str | None = None
    format: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_stored(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("file_id"):
            raise ValueError("'file_id': nothing is stored here; send 'file_data', a data URL")
        return given


class FilePart(Fields):
    type: Literal["file"]
    file: FileData


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]


class ChatMessage(Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    """Taken as a label, and not shown to the model."""

    @classmethod
    def _drop_empty(cls, given: object) -> object:
        """Without what clients copy into the history from an earlier answer that had none of it."""
        if not isinstance(given, dict):
            return given
        empty = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning")
        return {k: v for k, v in given.items() if k not in empty or v not in (None, [], "")}

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, given: object) -> object:
        given = cls._drop_empty(given)
        if not isinstance(given, dict):
            return given
        if given.get("role") in ("tool", "function"):
            raise ValueError(f"a message of the role {given['role']!r}: {NO_TOOLS[:-1]}")
        if given.get("tool_calls"):
            raise ValueError(f"a message with 'tool_calls': {NO_TOOLS[:-1]}")
        if given.get("role") == "assistant" and given.get("content", "") is None:
            return {**given, "content": ""}  # as answers have it that were nothing but tool calls
        return given


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ModelRequest(SamplingFields):
    """`user`, `safety_identifier`, `prompt_cache_key` and `metadata` are labels, which change
    nothing; `user` is written to the log."""

    model: str | None = None
    n: NumChoices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    logit_bias: LogitBias | None = None
    structured_outputs: StructuredOutputs | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ModelRequest:
        forms = self.structured_outputs
        if forms is not None and forms.num_forms != 1:
            raise ValueError("structured_outputs has exactly one of regex, choice and json")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self, max_tokens: int | None) -> GenerationOptions:
        bias = tuple((self.logit_bias or {}).items())
        return replace(super().options(max_tokens), logit_bias=bias)


class ChatRequest(ModelRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    max_tiles: MaxTiles | None = None
    """An addition: tiles that the images of the request share."""
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @classmethod
    def unsupported(cls) -> Mapping[str, str]:
        return {
            "tools": NO_TOOLS,
            "tool_choice": NO_TOOLS,
            "parallel_tool_calls": NO_TOOLS,
            "functions": NO_TOOLS,
            "function_call": NO_TOOLS,
            "audio": NO_AUDIO,
            "prediction": "there is no speculation.",
            "reasoning_effort": "the models do not reason before they answer.",
            "verbosity": "ask for a length in words.",
            "web_search_options": "nothing is searched.",
            "store": "nothing is stored.",
            "service_tier": "there is one tier.",
            "prompt_cache_retention": "the cache keeps what was used last.",
        }

    @classmethod
    def idle(cls, name: str, given: Mapping[str, Any]) -> bool:
        """How tools are called means nothing where there are none, and a default is no wish."""
        if name == "parallel_tool_calls":
            return not given.get("tools")
        return (name, given[name]) == ("verbosity", "medium") or super().idle(name, given)

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, given: object) -> object:
        """`modalities: ["text"]` is what is done anyway."""
        if isinstance(given, dict) and "modalities" in given:
            given = dict(given)
            if given.pop("modalities") not in (None, ["text"]):
                raise ValueError(f"modalities: {NO_AUDIO[:-1]}")
        return given

    @model_validator(mode="after")
    def _fields_go_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        formats = self.response_format is not None and self.response_format.type != "text"
        if formats and self.structured_outputs is not None:
            raise ValueError("response_format and structured_outputs cannot be used together")
        return self

    @property
    def answer_tokens(self) -> int | None:
        return limit_of(self.max_completion_tokens or self.max_tokens)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(ModelRequest):
    """A text to go on from, without turns. 16 tokens unless told otherwise, as at OpenAI's."""

    words = COMPLETIONS
    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Literal[1] | None = None

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: str | list[str]) -> str | list[str]:
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not texts or not all(texts):
            raise ValueError("give at least one text, and no empty one")
        return prompt

    @classmethod
    def unsupported(cls) -> Mapping[str, str]:
        return {
            "echo": "only what is new comes back.",
            "suffix": "the models do not fill in the middle.",
        }
