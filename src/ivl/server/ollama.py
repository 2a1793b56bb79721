"""Ollama's API: chat, generate, and what clients ask for before they show a model.

Source: `docs/api.md` of Ollama. Streams are lines of JSON, durations nanoseconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ivl import __version__
from ivl.engine.answer import Timings, logprob_record
from ivl.engine.engine import Engine
from ivl.engine.events import Piece
from ivl.engine.request import EngineRequest
from ivl.server.answers import Answers, WholeAnswer
from ivl.server.bodies import body_schema, read_body
from ivl.server.chat import Asked, PictureSource, Turn
from ivl.server.context import Context
from ivl.server.errors import ApiError
from ivl.server.hub import LATEST, ServedModel, StoredFacts
from ivl.server.ollama_fields import (
    OllamaChat,
    OllamaGenerate,
    OllamaMessage,
    OllamaRequest,
    OllamaShow,
    Options,
)

router = APIRouter(tags=["Ollama"])
NDJSON = "application/x-ndjson"
FAR_FUTURE_S = 3650 * 86400.0


@router.post("/api/chat", openapi_extra=body_schema(OllamaChat))
async def chat(request: Request) -> Response:
    """Answers the last message. Without messages it only loads the model."""
    body = await read_body(request, OllamaChat)
    writer = OllamaWriter(body, lambda text: {"message": {"role": "assistant", "content": text}})
    if not body.messages:
        return await _load_or_unload(request, writer)
    return await _answer(request, body, writer, [_turn(message) for message in body.messages])


@router.post("/api/generate", openapi_extra=body_schema(OllamaGenerate))
async def generate(request: Request) -> Response:
    """Answers one prompt. Without a prompt it only loads the model."""
    body = await read_body(request, OllamaGenerate)
    writer = OllamaWriter(body, lambda text: {"response": text})
    if not body.prompt and not body.images:
        return await _load_or_unload(request, writer)
    if body.raw:
        return await _answer(request, body, writer, None)
    turns = [Turn("system", [body.system])] if body.system else []
    pictures = [PictureSource(base64=image) for image in body.images or ()]
    turns.append(Turn("user", [*pictures, body.prompt or ""]))
    return await _answer(request, body, writer, turns)


@router.get("/api/version")
async def version() -> dict[str, str]:
    """A version of Ollama's whose API this is like, for clients that compare; and our own."""
    return {"version": "0.12.0", "ivl": __version__}


@router.get("/api/tags")
async def tags(request: Request) -> dict[str, Any]:
    """The models that can be asked for."""
    hub = Context.of(request).hub
    loaded = {model.name: model for model in hub.loaded}
    since = _time(hub.created)
    entries = []
    for name in hub.names:
        facts = await hub.stored_facts(name)
        entry = {**_entry(name, facts, loaded.get(name)), "modified_at": since}
        entries.append(entry)
    return {"models": entries}


@router.get("/api/ps")
async def running(request: Request) -> dict[str, Any]:
    """The models that are loaded."""
    models, hub = [], Context.of(request).hub
    for model in hub.loaded:
        entry = _entry(model.name, await hub.stored_facts(model.name), model)
        entry["size"] = _bytes_in_memory(model.engine)
        on_gpu = model.engine.model.device.type != "cpu"
        entry["size_vram"] = entry["size"] if on_gpu else 0
        entry["context_length"] = model.engine.context
        kept_s = FAR_FUTURE_S if model.keep_alive_s is None else model.keep_alive_s
        unused_s = 0.0 if model.num_users else time.monotonic() - model.last_used
        entry["expires_at"] = _time(time.time() + kept_s - unused_s)
        models.append(entry)
    return {"models": models}


@router.post("/api/show", openapi_extra=body_schema(OllamaShow))
async def show(request: Request) -> dict[str, Any]:
    """What a model is. Loads it if need be."""
    body = await read_body(request, OllamaShow)
    context = Context.of(request)
    async with context.hub.use(body.model or body.name) as model:
        engine = model.engine
        decoder, vision = engine.config.decoder, engine.config.vision
        facts = {
            "general.architecture": "internvl",
            "general.parameter_count": _num_parameters(engine),
            "internvl.context_length": engine.context,
            "internvl.embedding_length": decoder.hidden_size,
            "internvl.block_count": decoder.num_layers,
            "internvl.attention.head_count": decoder.num_heads,
            "internvl.attention.head_count_kv": decoder.num_kv_heads,
        }
        if vision is not None:
            facts["internvl.vision.block_count"] = vision.num_layers
            facts["internvl.vision.image_size"] = engine.config.tile_px
        return {
            "license": "",
            "modelfile": f"FROM {model.name}",
            "parameters": f"num_ctx {engine.context}",
            "template": engine.template.name,
            "details": _details(await context.hub.stored_facts(model.name), model),
            "model_info": facts,
            "capabilities": ["completion", *(["vision"] if vision is not None else [])],
            "modified_at": _time(model.loaded_at),
        }


async def _load_or_unload(request: Request, writer: OllamaWriter) -> Response:
    """Nothing was asked: the model is to be there, or, with a keep_alive of 0, to go."""
    hub, body = Context.of(request).hub, writer.body
    if body.keep_alive_s == 0:
        hub.find(body.model)
        await hub.unload(body.model)
        reason = "unload"
    else:
        async with hub.use(body.model) as model:
            _keep(model, body)
        reason = "load"
    done = {**writer.head(), **writer.content(""), "done": True, "done_reason": reason}
    return JSONResponse(done)


def _keep(model: ServedModel, body: OllamaRequest) -> None:
    """How long the model stays unused: what the last request said of it counts."""
    if (seconds := body.keep_alive_s) is not None:
        model.keep_alive_s = None if seconds < 0 else seconds


async def _answer(
    request: Request, body: OllamaRequest, writer: OllamaWriter, turns: list[Turn] | None
) -> Response:
    context = Context.of(request)
    request.state.facts = {"model": body.model}
    options = body.options or Options()

    def make(model: ServedModel) -> EngineRequest:
        """A raw prompt: no turns, no images."""
        assert isinstance(body, OllamaGenerate)
        if body.images or body.system:
            raise ApiError(400, "A raw prompt has neither images nor a system message.")
        return EngineRequest.completion(
            model.engine,
            body.prompt or "",
            context=options.num_ctx,
            options=options.generation(model.engine.context),
            num_logprobs=body.num_logprobs,
            grammar=body.compile_format(model.engine.grammars) if body.format else None,
        )

    async with context.hub.use(body.model) as model:
        limit = model.engine.context
        _keep(model, body)
    asked = (
        make
        if turns is None
        else Asked(
            turns=turns,
            options=options.generation(limit),
            max_tiles=options.max_tiles,
            context=options.num_ctx,
            num_logprobs=body.num_logprobs,
            grammar=body.compile_format if body.format else None,
        )
    )
    if body.stream is not False:
        return await context.stream(
            request,
            body.model,
            asked,
            writer.lines,
            media_type=NDJSON,
            write_error=lambda error: _line({"error": error.message}),
        )
    model, [answer] = await context.whole(request, body.model, asked)
    return JSONResponse(writer.whole(model, answer))


def _turn(message: OllamaMessage) -> Turn:
    pictures = [PictureSource(base64=image) for image in message.images or ()]
    return Turn(message.role, [*pictures, message.content or ""])


class OllamaWriter:
    """Writes answers as Ollama does; `content` puts a text where the route has it."""

    def __init__(self, body: OllamaRequest, content: Any) -> None:
        self.body, self.content = body, content

    def head(self) -> dict[str, Any]:
        # The name as it was asked for: some clients compare it.
        return {"model": self.body.model, "created_at": _time()}

    def whole(self, model: ServedModel, answer: WholeAnswer) -> dict[str, Any]:
        assert answer.timings is not None
        logprobs = self._logprobs(answer.tokens, model)
        content = self.content(answer.text)
        return {**self.head(), **content, **logprobs, **_end(answer.reason, answer.timings)}

    async def lines(self, answers: Answers) -> AsyncIterator[str]:
        model = answers.model
        async for _, event in answers:
            if isinstance(event, Piece):
                rest = {**self.content(event.text), "done": False}
                rest |= self._logprobs(event.tokens, model)
            else:
                rest = {**self.content(""), **_end(event.reason, event.timings)}
            yield _line({**self.head(), **rest})

    def _logprobs(self, tokens: Any, model: ServedModel) -> dict[str, Any]:
        if not self.body.logprobs:
            return {}
        return {"logprobs": [logprob_record(token, model.engine.tokenizer) for token in tokens]}


def _end(reason: str, timings: Timings) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": reason,
        "total_duration": _ns(timings.total_s),
        "load_duration": 0,
        "prompt_eval_count": timings.num_prompt_tokens,
        "prompt_eval_duration": _ns(timings.encode_s + timings.prefill_s),
        "eval_count": timings.num_answer_tokens,
        "eval_duration": _ns(timings.decode_s),
    }


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _time(seconds: float | None = None) -> str:
    moment = datetime.now(UTC)
    if seconds is not None:
        moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _entry(name: str, facts: StoredFacts | None, model: ServedModel | None) -> dict[str, Any]:
    """A model in a list. What only its files or a loaded one know is empty without them."""
    tag = name if ":" in name else name + LATEST
    size = facts.num_bytes if facts else _bytes_in_memory(model.engine) if model else 0
    return {
        "name": tag,
        "model": tag,
        "size": size,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": _details(facts, model),
    }


def _details(facts: StoredFacts | None, model: ServedModel | None) -> dict[str, Any]:
    count = facts.num_parameters if facts else _num_parameters(model.engine) if model else 0
    return {
        "parent_model": "",
        "format": facts.format if facts else "",
        "family": "internvl",
        "families": ["internvl"],
        "parameter_size": parameter_size(count) if count else "",
        "quantization_level": facts.kind if facts else "",
    }


def parameter_size(count: int) -> str:
    """As Ollama writes it: 8.1B, 494.0M."""
    return f"{count / 1e9:.1f}B" if count >= 999_950_000 else f"{count / 1e6:.1f}M"


def _num_parameters(engine: Engine) -> int:
    from ivl.footprint.tensors import num_parameters

    return num_parameters(engine.config)


def _bytes_in_memory(engine: Engine) -> int:
    tensors = (*engine.model.parameters(), *engine.model.buffers())
    return sum(tensor.nbytes for tensor in tensors)
