"""OpenAI's `/v1/responses`. Source: OpenAI's API reference."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, ClassVar, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, field_validator, model_validator

from ivl.engine.answer import Piece
from ivl.engine.engine import Engine
from ivl.engine.grammar import Grammar
from ivl.json_values import JsonObject
from ivl.server.answers import Answers, Context, WholeAnswer, Writer, sse
from ivl.server.asked import Asked, PictureSource, Turn
from ivl.server.bodies import Fields, body_schema, read_body
from ivl.server.errors import ApiError
from ivl.server.foreign import RESPONSES
from ivl.server.openai import (
    NO_TOOLS,
    Conversed,
    Detail,
    JsonObjectFormat,
    Limit,
    MaxTiles,
    MessageOf,
    SchemaOf,
    TextFormat,
    TextOf,
    new_id,
    picture_of,
)

router = APIRouter(tags=["OpenAI"])


class InputText(TextOf):
    type: Literal["input_text"]


class OutputText(TextOf):
    """A text of an earlier answer."""

    type: Literal["output_text"]
    annotations: Annotated[list[object], Field(max_length=0)] | None = None
    logprobs: list[object] | None = None


class InputImage(Fields):
    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None
    max_tiles: MaxTiles | None = None
    """An addition: a limit for this image."""

    @property
    def shown(self) -> PictureSource:
        return picture_of(self.image_url, self.detail, self.max_tiles)


class InputFile(Fields):
    """A PDF, or an image, as a data URL."""

    type: Literal["input_file"]
    file_data: str
    filename: str | None = None

    @property
    def shown(self) -> PictureSource:
        return PictureSource(url=self.file_data)


Content = Annotated[InputText | OutputText | InputImage | InputFile, Field(discriminator="type")]


class InputMessage(MessageOf):
    type: Literal["message"] | None = None
    content: str | list[Content]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class NamedSchemaFormat(SchemaOf):
    type: Literal["json_schema"]


class TextSettings(Fields):
    format: (
        Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")]
        | None
    ) = None


class ResponsesRequest(Conversed):
    """`store` may be false only: nothing is kept between requests."""

    words = RESPONSES
    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    text: TextSettings | None = None
    truncation: Literal["disabled"] | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
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

    @field_validator("input")
    @classmethod
    def _not_empty(cls, given: str | list[InputMessage]) -> str | list[InputMessage]:
        if not given:
            raise ValueError("the input is empty")
        return given

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, given: object) -> object:
        """`include` is a list of additions to the answer, of which there are none, and a
        verbosity of `medium` is the default."""
        if not isinstance(given, dict):
            return given
        given = {k: v for k, v in given.items() if k != "include" or v not in (None, [])}
        text = given.get("text")
        if isinstance(text, dict) and text.get("verbosity") in (None, "medium"):
            given["text"] = {k: v for k, v in text.items() if k != "verbosity"}
        return given

    @property
    def turns(self) -> list[Turn]:
        """Instructions come first, in the place of a system message."""
        turns = [Turn("system", [self.instructions])] if self.instructions else []
        if isinstance(self.input, str):
            return [*turns, Turn("user", [self.input])]
        return [*turns, *(message.turn(message.content) for message in self.input)]

    def grammar(self, engine: Engine) -> Grammar | None:
        form = self.text and self.text.format
        return form and form.compile(engine.grammars)


@router.post("/v1/responses", openapi_extra=body_schema(ResponsesRequest))
async def responses(request: Request) -> Response:
    """Answers an input of texts, images and PDFs. Nothing is stored."""
    body = await read_body(request, ResponsesRequest)
    asked = Asked(
        turns=body.turns,
        options=body.options(body.max_output_tokens),
        max_tiles=body.max_tiles,
        num_logprobs=body.top_logprobs,
        grammar=body.grammar,
    )
    writer, is_stream = ResponseWriter(body), bool(body.stream)
    return await Context.of(request).answer(request, body.model, asked, writer, is_stream=is_stream)


class ResponseWriter(Writer):
    """Writes a response, whole or as the events that build it up."""

    def __init__(self, body: ResponsesRequest) -> None:
        self.body = body
        self.id, self.message_id = new_id("resp"), new_id("msg")
        self.created = int(time.time())
        self._number = -1

    def whole(self, answers: Answers) -> dict[str, object]:
        [answer] = answers.whole
        cut_off = {"reason": "max_output_tokens"} if answer.reason == "length" else None
        status = "incomplete" if cut_off else "completed"
        timings = answer.timings
        return {
            **self._response(answers.model.name, status),
            "incomplete_details": cut_off,
            "output": [self._message(status, [self._part(answers)])],
            "usage": {
                "input_tokens": timings.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": timings.num_cached_tokens},
                "output_tokens": timings.num_answer_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": timings.num_prompt_tokens + timings.num_answer_tokens,
            },
        }

    def _response(self, model: str | None, status: str) -> dict[str, object]:
        """The whole object, without what an answer says."""
        body = self.body
        form = body.text.format if body.text else None
        shown = form.model_dump(by_alias=True, exclude_none=True) if form else {}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": {"format": {"type": form.type if form else "text", **shown}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    async def lines(self, answers: Answers) -> AsyncIterator[str]:
        begun = self._response(answers.model.name, "in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = self._message("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        part = self._part(answers)
        yield self._event("response.content_part.added", **place, part=part)
        async for _, event in answers:
            if isinstance(event, Piece):
                shown = self._part(answers, WholeAnswer(event.text, list(event.tokens)))
                yield self._event(
                    "response.output_text.delta",
                    **place,
                    delta=event.text,
                    logprobs=shown["logprobs"],
                )
        part = self._part(answers)
        yield self._event(
            "response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"]
        )
        yield self._event("response.content_part.done", **place, part=part)
        final = self.whole(answers)
        [item] = cast("list[JsonObject]", final["output"])
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{final['status']}", response=final)

    def failed(self, error: ApiError) -> str:
        shown = {"code": "server_error", "message": error.message}
        response = {**self._response(self.body.model, "failed"), "error": shown}
        return self._event("response.failed", response=response)

    def _event(self, kind: str, **fields: object) -> str:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **fields}, event=kind)

    def _message(self, status: str, content: list[dict[str, object]]) -> dict[str, object]:
        return {
            "type": "message",
            "id": self.message_id,
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self, answers: Answers, written: WholeAnswer | None = None) -> dict[str, object]:
        """A text and its tokens; by default all that has been written."""
        answer = written or answers.whole[0]
        wanted = self.body.top_logprobs is not None
        return {
            "type": "output_text",
            "text": answer.text,
            "annotations": [],
            "logprobs": answers.logprobs(answer.tokens) if wanted else [],
        }
