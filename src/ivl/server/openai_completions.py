"""OpenAI's `/v1/completions` and `/v1/models`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ivl.engine.answer import Piece, TokenLogprob
from ivl.engine.request import EngineRequest
from ivl.server.answers import Answers, WholeAnswer, copies, unless_gone
from ivl.server.bodies import body_schema, read_body
from ivl.server.context import FINGERPRINT, Context, new_id, now, sse
from ivl.server.errors import ApiError
from ivl.server.hub import ServedModel
from ivl.server.openai_chat import in_order, num_choices, usage_of
from ivl.server.openai_fields import CompletionRequest, limit_of

router = APIRouter(tags=["OpenAI"])
DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
async def completions(request: Request) -> Response:
    """Goes on from a text, without turns."""
    context = Context.of(request)
    body = await read_body(request, CompletionRequest)
    request.state.facts = {"model": body.model, **({"user": body.user} if body.user else {})}
    count = num_choices(body, context)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) * count > context.settings.max_choices:
        most = context.settings.max_choices
        raise ApiError(400, f"At most {most} completions at once.", param="prompt")

    def make(model: ServedModel, text: str) -> EngineRequest:
        forms = body.structured_outputs
        return EngineRequest.completion(
            model.engine,
            text,
            options=body.options(limit_of(body.max_tokens or DEFAULT_MAX_TOKENS)),
            num_logprobs=body.logprobs,
            grammar=forms.compile(model.engine.grammars) if forms else None,
        )

    writer = CompletionWriter(body)
    if body.stream:
        if len(prompts) > 1:
            raise ApiError(400, "A stream has one prompt.", param="prompt")
        return await context.stream(
            request, body.model, lambda m: make(m, prompts[0]), writer.lines, num_answers=count
        )

    async def work() -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(context.hub.use(body.model))
            ready = []
            for prompt in prompts:
                ready += copies(await context.preparation.run(make, model, prompt), count)
            answers = await stack.enter_async_context(Answers(model, ready, context.metrics))
            return writer.whole(model, await answers.collect(len(ready)), len(prompts))

    return JSONResponse(await unless_gone(request, work()))


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that requests can name."""
    hub = Context.of(request).hub
    return {"object": "list", "data": [model_card(name, hub.created) for name in hub.names]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    hub = Context.of(request).hub
    return model_card(hub.find(name), hub.created)


def model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "ivl"}


class CompletionWriter:
    """Writes completions as OpenAI does."""

    def __init__(self, body: CompletionRequest) -> None:
        self.body = body
        self.id, self.created = new_id("cmpl"), now()

    def whole(
        self, model: ServedModel, answers: list[WholeAnswer], num_prompts: int
    ) -> dict[str, Any]:
        choices = [
            self._choice(index, answer.text, answer.reason, model, answer.tokens)
            for index, answer in enumerate(answers)
        ]
        each = len(answers) // num_prompts
        usage = usage_of(answers)
        firsts = [a.timings.num_prompt_tokens for a in answers[::each] if a.timings is not None]
        usage["prompt_tokens"] = sum(firsts)
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        return {**self._head(model), "choices": choices, "usage": usage}

    async def lines(self, answers: Answers) -> AsyncIterator[str]:
        model = answers.model
        ended: dict[int, WholeAnswer] = {}
        async for index, event in answers:
            if isinstance(event, Piece):
                choice = self._choice(index, event.text, None, model, event.tokens)
            else:
                ended[index] = WholeAnswer(reason=event.reason, timings=event.timings)
                choice = self._choice(index, "", event.reason, model, ())
            yield sse({**self._head(model), "choices": [choice]})
        if self.body.include_usage:
            yield sse({**self._head(model), "choices": [], "usage": usage_of(in_order(ended))})
        yield "data: [DONE]\n\n"

    def _head(self, model: ServedModel) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": model.name,
            "system_fingerprint": FINGERPRINT,
        }

    def _choice(
        self,
        index: int,
        text: str,
        reason: str | None,
        model: ServedModel,
        tokens: Sequence[TokenLogprob],
    ) -> dict[str, Any]:
        logprobs = None
        if self.body.logprobs is not None and tokens:
            logprobs = _logprobs(tokens, model)
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}


def _logprobs(tokens: Sequence[TokenLogprob], model: ServedModel) -> dict[str, Any]:
    def text(token_id: int) -> str:
        return model.engine.tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    texts = [text(token.id) for token in tokens]
    lengths = [len(shown) for shown in texts]
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{text(i): value for i, value in token.top} for token in tokens],
        "text_offset": [sum(lengths[:index]) for index in range(len(tokens))],
    }
