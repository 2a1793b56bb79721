"""OpenAI's `/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ivl.engine.answer import Piece, logprob_record
from ivl.engine.grammar import Grammar, GrammarCompiler
from ivl.server.answers import Answers, WholeAnswer
from ivl.server.bodies import body_schema, read_body
from ivl.server.chat import Asked, PictureSource, Turn
from ivl.server.context import Context, new_id, now, sse
from ivl.server.errors import ApiError
from ivl.server.hub import ServedModel
from ivl.server.openai_chat import picture_of
from ivl.server.openai_fields import limit_of
from ivl.server.responses_fields import InputFile as FileInput
from ivl.server.responses_fields import (
    InputImage,
    InputMessage,
    NamedSchemaFormat,
    ResponsesRequest,
)
from ivl.server.sampling_fields import JsonObjectFormat

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/responses", openapi_extra=body_schema(ResponsesRequest))
async def responses(request: Request) -> Response:
    """Answers an input of texts, images and PDFs. Nothing is stored."""
    context = Context.of(request)
    body = await read_body(request, ResponsesRequest)
    request.state.facts = {"model": body.model, **({"user": body.user} if body.user else {})}
    asked = Asked(
        turns=turns_of(body),
        options=body.options(limit_of(body.max_output_tokens)),
        max_tiles=body.max_tiles,
        num_logprobs=body.top_logprobs,
        grammar=lambda grammars: compile_format(body, grammars),
    )
    writer = ResponseWriter(body)
    if body.stream:
        return await context.stream(
            request, body.model, asked, writer.lines, write_error=writer.failed
        )
    model, [answer] = await context.whole(request, body.model, asked)
    return JSONResponse(writer.response(model, answer))


def turns_of(body: ResponsesRequest) -> list[Turn]:
    """Instructions come first, in the place of a system message."""
    turns = [Turn("system", [body.instructions])] if body.instructions else []
    if isinstance(body.input, str):
        return [*turns, Turn("user", [body.input])]
    return [*turns, *(_turn(message) for message in body.input)]


def _turn(message: InputMessage) -> Turn:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Turn(role, [message.content])
    turn = Turn(role)
    for part in message.content:
        if isinstance(part, InputImage):
            turn.parts.append(picture_of(part.image_url, part.detail, part.max_tiles))
        elif isinstance(part, FileInput):
            turn.parts.append(PictureSource(url=part.file_data))
        else:
            turn.parts.append(part.text)
    return turn


def compile_format(body: ResponsesRequest, grammars: GrammarCompiler) -> Grammar | None:
    form = body.text.format if body.text else None
    if isinstance(form, NamedSchemaFormat):
        return grammars.json_schema(form.schema_)
    return grammars.json_object() if isinstance(form, JsonObjectFormat) else None


class ResponseWriter:
    """Writes a response, whole or as the events that build it up."""

    def __init__(self, body: ResponsesRequest) -> None:
        self.body = body
        self.id, self.message_id, self.created = new_id("resp"), new_id("msg"), now()
        self._number = -1

    def response(
        self, model: ServedModel | None, answer: WholeAnswer | None, error: ApiError | None = None
    ) -> dict[str, Any]:
        """The whole object: done, or with an answer of None still to come."""
        body, reason = self.body, answer.reason if answer else None
        status = "in_progress" if answer is None else "completed"
        if error is not None:
            status = "failed"
        cut_off = {"reason": "max_output_tokens"} if reason == "length" else None
        name = model.name if model else body.model
        done = "incomplete" if cut_off else status
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": done,
            "error": None if error is None else {"code": "server_error", "message": error.message},
            "incomplete_details": cut_off,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": name,
            "output": [] if answer is None else [self._message(model, answer, done)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": {"format": self._format()},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
            "user": body.user,
        }

    async def lines(self, answers: Answers) -> AsyncIterator[str]:
        model, whole = answers.model, WholeAnswer()
        begun = self.response(model, None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = {**self._message(model, whole, "in_progress"), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        part = self._part(model, whole)
        yield self._event("response.content_part.added", **place, part=part)
        async for _, event in answers:
            if not isinstance(event, Piece):
                whole.reason, whole.timings = event.reason, event.timings
                continue
            whole.text += event.text
            whole.tokens += event.tokens
            shown = self._logprobs(model, list(event.tokens))
            yield self._event(
                "response.output_text.delta", **place, delta=event.text, logprobs=shown
            )
        part = self._part(model, whole)
        yield self._event(
            "response.output_text.done", **place, text=whole.text, logprobs=part["logprobs"]
        )
        yield self._event("response.content_part.done", **place, part=part)
        final = self.response(model, whole)
        yield self._event("response.output_item.done", output_index=0, item=final["output"][0])
        kind = "response.completed" if final["status"] == "completed" else "response.incomplete"
        yield self._event(kind, response=final)

    def failed(self, error: ApiError) -> str:
        """The last event of a stream that cannot go on."""
        return self._event("response.failed", response=self.response(None, None, error))

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **fields}, event=kind)

    def _format(self) -> dict[str, Any]:
        form = self.body.text.format if self.body.text else None
        if form is None:
            return {"type": "text"}
        return form.model_dump(by_alias=True, exclude_none=True)

    def _message(
        self, model: ServedModel | None, answer: WholeAnswer, status: str
    ) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self.message_id,
            "role": "assistant",
            "status": status,
            "content": [self._part(model, answer)],
        }

    def _part(self, model: ServedModel | None, answer: WholeAnswer) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": answer.text,
            "annotations": [],
            "logprobs": self._logprobs(model, answer.tokens),
        }

    def _logprobs(self, model: ServedModel | None, tokens: list[Any]) -> list[dict[str, Any]]:
        if self.body.top_logprobs is None or model is None:
            return []
        return [logprob_record(token, model.engine.tokenizer) for token in tokens]


def _usage(answer: WholeAnswer) -> dict[str, Any]:
    timings = answer.timings
    assert timings is not None
    return {
        "input_tokens": timings.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": timings.num_cached_tokens},
        "output_tokens": timings.num_answer_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": timings.num_prompt_tokens + timings.num_answer_tokens,
    }
