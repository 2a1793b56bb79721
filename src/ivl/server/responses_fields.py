"""Bodies of OpenAI's `/v1/responses`. Source: OpenAI's API reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ivl.server.bodies import Fields
from ivl.server.foreign import RESPONSES
from ivl.server.openai_fields import Detail, Limit, MaxTiles
from ivl.server.sampling_fields import (
    MAX_TOP_LOGPROBS,
    NO_TOOLS,
    JsonObjectFormat,
    SamplingFields,
    TextFormat,
)


class InputText(Fields):
    type: Literal["input_text"]
    text: str


class OutputText(Fields):
    """A text of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class InputImage(Fields):
    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None
    max_tiles: MaxTiles | None = None
    """An addition: a limit for this image."""


class InputFile(Fields):
    """A PDF, or an image, as a data URL."""

    type: Literal["input_file"]
    file_data: str
    filename: str | None = None


Content = Annotated[InputText | OutputText | InputImage | InputFile, Field(discriminator="type")]


class InputMessage(Fields):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class NamedSchemaFormat(Fields):
    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


OutputFormat = Annotated[
    TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")
]


class TextSettings(Fields):
    format: OutputFormat | None = None


class ResponsesRequest(SamplingFields):
    """`store` may be false only: nothing is kept between requests."""

    words = RESPONSES

    model: str | None = None
    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["disabled"] | None = None
    max_tiles: MaxTiles | None = None
    """An addition: tiles that the images of the request share."""
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("input")
    @classmethod
    def _not_empty(cls, given: str | list[InputMessage]) -> str | list[InputMessage]:
        if not given:
            raise ValueError("the input is empty")
        return given

    @model_validator(mode="before")
    @classmethod
    def _no_logprobs_asked(cls, given: object) -> object:
        """`include` is a list of additions to the answer, of which there are none, and a
        verbosity of `medium` is the default."""
        if not isinstance(given, dict):
            return given
        given = {
            k: v for k, v in given.items() if (k, v) not in (("include", None), ("include", []))
        }
        text = given.get("text")
        if isinstance(text, dict) and text.get("verbosity") in (None, "medium"):
            given["text"] = {k: v for k, v in text.items() if k != "verbosity"}
        return given

    @classmethod
    def idle(cls, name: str, given: Mapping[str, Any]) -> bool:
        """How tools are called means nothing where there are none, and there is no obfuscation."""
        if name in ("parallel_tool_calls", "max_tool_calls"):
            return not given.get("tools")
        if name == "stream_options" and isinstance(given[name], dict):
            return not any(given[name].values())
        return super().idle(name, given)

    @classmethod
    def unsupported(cls) -> Mapping[str, str]:
        return {
            "tools": NO_TOOLS,
            "tool_choice": NO_TOOLS,
            "parallel_tool_calls": NO_TOOLS,
            "max_tool_calls": NO_TOOLS,
            "previous_response_id": "nothing is stored; send the conversation.",
            "conversation": "nothing is stored; send the conversation.",
            "store": "nothing is stored.",
            "background": "nothing is stored.",
            "prompt": "there are no stored prompts.",
            "reasoning": "the models do not reason before they answer.",
            "service_tier": "there is one tier.",
            "stream_options": "a stream has no options.",
        }
