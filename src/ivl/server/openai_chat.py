"""OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ivl.engine.answer import logprob_record
from ivl.engine.events import Piece
from ivl.engine.grammar import Grammar, GrammarCompiler
from ivl.server.answers import Answers, WholeAnswer
from ivl.server.bodies import body_schema, read_body
from ivl.server.chat import Asked, PictureSource, Turn
from ivl.server.context import FINGERPRINT, Context, new_id, now, sse, timings_of
from ivl.server.errors import ApiError
from ivl.server.hub import ServedModel
from ivl.server.openai_fields import ChatMessage, ChatRequest, FilePart, ModelRequest, TextPart
from ivl.server.sampling_fields import JsonObjectFormat, JsonSchemaFormat, ResponseFormat

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answers the last message of a conversation, which may show images and PDFs."""
    context = Context.of(request)
    body = await read_body(request, ChatRequest)
    request.state.facts = {"model": body.model, **({"user": body.user} if body.user else {})}
    num_answers = num_choices(body, context)
    asked = Asked(
        turns=[turn_of(message) for message in body.messages],
        options=body.options(body.answer_tokens),
        max_tiles=body.max_tiles,
        num_logprobs=body.num_logprobs,
        grammar=lambda grammars: compile_form(body, grammars),
    )
    writer = ChatWriter(body)
    if body.stream:
        return await context.stream(
            request, body.model, asked, writer.lines, num_answers=num_answers
        )
    model, answers = await context.whole(request, body.model, asked, num_answers=num_answers)
    return JSONResponse(writer.whole(model, answers))


def num_choices(body: ModelRequest, context: Context) -> int:
    """`n`; ApiError 400 for more than the server gives."""
    count = body.n or 1
    if count > context.settings.max_choices:
        most = context.settings.max_choices
        raise ApiError(400, f"n is {count}, and may be at most {most}.", param="n")
    return count


def turn_of(message: ChatMessage) -> Turn:
    """A message's texts and pictures."""
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Turn(role, [message.content])
    turn = Turn(role)
    for part in message.content:
        if isinstance(part, TextPart):
            turn.parts.append(part.text)
        elif isinstance(part, FilePart):
            turn.parts.append(PictureSource(url=part.file.file_data))
        else:
            turn.parts.append(
                picture_of(part.image_url.url, part.image_url.detail, part.image_url.max_tiles)
            )
    return turn


def picture_of(url: str, detail: str | None, max_tiles: int | None = None) -> PictureSource:
    """`low` is one tile, `high` as many as the model is made for, `auto` a share."""
    limit = max_tiles or (1 if detail == "low" else None)
    return PictureSource(url=url, max_tiles=limit, whole=detail == "high")


def compile_form(body: ChatRequest, grammars: GrammarCompiler) -> Grammar | None:
    if body.structured_outputs is not None:
        return body.structured_outputs.compile(grammars)
    return compile_format(body.response_format, grammars)


def compile_format(form: ResponseFormat | None, grammars: GrammarCompiler) -> Grammar | None:
    """The grammar of OpenAI's `response_format`."""
    if isinstance(form, JsonSchemaFormat):
        return grammars.json_schema(form.json_schema.schema_)
    return grammars.json_object() if isinstance(form, JsonObjectFormat) else None


class ChatWriter:
    """Writes answers as OpenAI does."""

    def __init__(self, body: ChatRequest) -> None:
        self.body = body
        self.id, self.created = new_id("chatcmpl"), now()

    def whole(self, model: ServedModel, answers: list[WholeAnswer]) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            choice = self._choice(index, answer.reason, model, answer.tokens)
            choices.append({**choice, "message": message})
        return {
            **self._head("chat.completion", model),
            "choices": choices,
            "usage": usage_of(answers),
            "timings": timings_of_all(answers),
        }

    async def lines(self, answers: Answers) -> AsyncIterator[str]:
        model = answers.model
        ended: dict[int, WholeAnswer] = {}
        for index in range(self.body.n or 1):
            delta = {"role": "assistant", "content": ""}
            yield self._chunk(model, {**self._choice(index, None, model, []), "delta": delta})
        async for index, event in answers:
            if isinstance(event, Piece):
                choice = self._choice(index, None, model, event.tokens)
                yield self._chunk(model, {**choice, "delta": {"content": event.text}})
            else:
                ended[index] = WholeAnswer(reason=event.reason, timings=event.timings)
                choice = self._choice(index, event.reason, model, [])
                yield self._chunk(model, {**choice, "delta": {}})
        if self.body.include_usage:
            whole = in_order(ended)
            tail = {"choices": [], "usage": usage_of(whole), "timings": timings_of_all(whole)}
            yield sse({**self._head("chat.completion.chunk", model), **tail})
        yield "data: [DONE]\n\n"

    def _chunk(self, model: ServedModel, choice: dict[str, Any]) -> str:
        usage = {"usage": None} if self.body.include_usage else {}
        return sse({**self._head("chat.completion.chunk", model), "choices": [choice], **usage})

    def _head(self, kind: str, model: ServedModel) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": model.name,
            "system_fingerprint": FINGERPRINT,
        }

    def _choice(
        self, index: int, reason: str | None, model: ServedModel, tokens: Any
    ) -> dict[str, Any]:
        logprobs = None
        if self.body.logprobs and (tokens or reason is None):
            logprobs = {
                "content": [logprob_record(t, model.engine.tokenizer) for t in tokens],
                "refusal": None,
            }
        return {"index": index, "finish_reason": reason, "logprobs": logprobs}


def in_order(ended: dict[int, WholeAnswer]) -> list[WholeAnswer]:
    """The answers of a stream by their numbers, in whatever order they have ended."""
    return [ended[index] for index in sorted(ended)]


def usage_of(answers: list[WholeAnswer]) -> dict[str, Any]:
    """Tokens of a prompt and of all answers to it. The prompt is read once: by the answer that
    found least of it in the cache."""
    timings = [answer.timings for answer in answers if answer.timings is not None]
    prompt = timings[0].num_prompt_tokens if timings else 0
    written = sum(t.num_answer_tokens for t in timings)
    cached = min((t.num_cached_tokens for t in timings), default=0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timings_of_all(answers: list[WholeAnswer]) -> dict[str, Any] | None:
    """Of the first answer, which is the one that read the prompt."""
    return timings_of(answers[0].timings) if answers and answers[0].timings else None
