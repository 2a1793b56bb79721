"""Ollama's API: chat, generate, and what clients ask for before they show a model.

Source: `docs/api.md` of Ollama. Streams are lines of JSON, durations nanoseconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field, model_validator

from ivl import __version__
from ivl.engine.answer import Piece, TokenLogprob
from ivl.engine.engine import Engine
from ivl.engine.grammar import Grammar
from ivl.engine.options import GenerationOptions
from ivl.errors import RequestError
from ivl.server.answers import Answers, Context, WholeAnswer, Writer
from ivl.server.asked import Asked, PictureSource, Turn
from ivl.server.bodies import Fields, body_schema, read_body
from ivl.server.errors import ApiError
from ivl.server.foreign import OLLAMA
from ivl.server.hub import LATEST, ServedModel, StoredFacts
from ivl.server.openai import NO_TOOLS, JsonSchema, MaxTiles, SamplingFields, TopLogprobs

router = APIRouter(tags=["Ollama"])
NDJSON = "application/x-ndjson"
FAR_FUTURE_S = 3650 * 86400.0
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(rf"[+-]?(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
PLACEMENT = (
    *("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "vocab_only", "use_mmap"),
    *("use_mlock", "num_thread", "num_keep", "logits_all", "embedding_only"),
)
"""Options that say how Ollama loads a model. Here that is said when the server is started."""

Images = list[str] | None
"""Files in base64: images, or PDFs."""


def parse_duration(given: float | str) -> float:
    """Seconds, which may be negative, of a length of time as Ollama's clients write it: `5m`,
    `1h30m`, `0`, `-1`, 300. ValueError for what is none.

    Source: Go's `time.ParseDuration`, which Ollama uses; a plain number is seconds.
    """
    if isinstance(given, int | float) and math.isfinite(given):
        return float(given)
    text = str(given).strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:50]!r} is no length of time: 5m, 1h30m, 300 (seconds), 0, or -1")
    seconds = sum(float(number) * SECONDS[unit] for number, unit in _PART.findall(text))
    return -seconds if text.startswith("-") else seconds


class Options(SamplingFields):
    """Ollama's options. What says how a model is placed is taken and changes nothing, as it changes
    no answer; num_ctx must be within the context that the server has."""

    words = OLLAMA
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    num_predict: Annotated[int, Field(ge=-2)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None
    """The penalty weighs so many of the last tokens of prompt and answer, 0: none, -1: all."""
    max_tiles: MaxTiles | None = None
    """An addition: tiles that the images share."""

    @model_validator(mode="before")
    @classmethod
    def _without_placement(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        given = {name: value for name, value in given.items() if name not in PLACEMENT}
        if given.get("seed") == -1:
            del given["seed"]  # Ollama's own default: another one each time
        return given

    def generation(self, context: int) -> GenerationOptions:
        """The engine's options; RequestError for a context that the server does not have."""
        if self.num_ctx is not None and self.num_ctx > context:
            raise RequestError(
                f"num_ctx is {self.num_ctx}, and the server's context is {context}.",
                "Start the server with a larger --context, or leave num_ctx out.",
            )
        predict = self.num_predict
        return self.chosen(
            max_tokens=None if predict is None or predict < 0 else max(predict, 1),
            temperature=self.temperature,
            top_k=self.top_k,
            repetition_penalty=self.repeat_penalty,
            penalty_window=None if self.repeat_last_n == -1 else self.repeat_last_n,
        )


class OllamaRequest(Fields):
    """`keep_alive`: seconds that the model stays when it is not used, negative ones for ever; by
    default until another needs its memory."""

    words = OLLAMA
    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    format: Literal["", "json"] | JsonSchema | None = None
    options: Options | None = None
    keep_alive: Annotated[float | str, AfterValidator(parse_duration)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    def grammar(self, engine: Engine) -> Grammar | None:
        if not self.format:
            return None
        if isinstance(self.format, dict):
            return engine.grammars.json_schema(self.format)
        return engine.grammars.json_object()


class OllamaMessage(Fields):
    words = OLLAMA
    role: Literal["system", "user", "assistant"]
    content: str | None = None
    images: Images = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        if given.get("role") == "tool" or given.get("tool_calls"):
            raise ValueError(NO_TOOLS[:-1])
        if isinstance(given.get("content"), list):
            raise ValueError("'content' is a text here; pictures go into 'images', in base64")
        dropped = ("thinking", "tool_calls", "tool_name")
        return {k: v for k, v in given.items() if k not in dropped or v}

    @property
    def turn(self) -> Turn:
        return _turn(self.role, self.content, self.images)


def _turn(role: Literal["system", "user", "assistant"], text: str | None, images: Images) -> Turn:
    return Turn(role, [*(PictureSource(base64=image) for image in images or ()), text or ""])


class OllamaChat(OllamaRequest):
    messages: list[OllamaMessage] | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "tools": NO_TOOLS,
        "think": "the models do not think before they answer.",
    }


class OllamaGenerate(OllamaRequest):
    prompt: str | None = None
    system: str | None = None
    images: Images = None
    raw: bool | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "suffix": "the models do not fill in the middle.",
        "template": "a model's own template is used; `raw` takes none.",
        "context": "send the conversation to /api/chat; the cache finds what it has seen.",
        "think": "the models do not think before they answer.",
        "width": "images are looked at, not made.",
        "height": "images are looked at, not made.",
        "steps": "images are looked at, not made.",
    }


class OllamaShow(Fields):
    words = OLLAMA
    model: str | None = None
    name: str | None = None
    """The older spelling of `model`."""
    verbose: bool | None = None


@router.post("/api/chat", openapi_extra=body_schema(OllamaChat))
async def chat(request: Request) -> Response:
    """Answers the last message. Without messages it only loads the model."""
    body = await read_body(request, OllamaChat)
    writer = OllamaWriter(body, lambda text: {"message": {"role": "assistant", "content": text}})
    if not body.messages:
        return await _load_or_unload(request, writer)
    return await _answer(request, writer, turns=[message.turn for message in body.messages])


@router.post("/api/generate", openapi_extra=body_schema(OllamaGenerate))
async def generate(request: Request) -> Response:
    """Answers one prompt. Without a prompt it only loads the model."""
    body = await read_body(request, OllamaGenerate)
    writer = OllamaWriter(body, lambda text: {"response": text})
    if not body.prompt and not body.images:
        return await _load_or_unload(request, writer)
    if body.raw:
        if body.images or body.system:
            raise ApiError(400, "A raw prompt has neither images nor a system message.")
        return await _answer(request, writer, texts=[body.prompt or ""])
    turns = [Turn("system", [body.system])] if body.system else []
    return await _answer(request, writer, turns=[*turns, _turn("user", body.prompt, body.images)])


@router.get("/api/version")
async def version() -> dict[str, str]:
    """A version of Ollama's whose API this is like, for clients that compare; and our own."""
    return {"version": "0.12.0", "ivl": __version__}


@router.get("/api/tags")
async def tags(request: Request) -> dict[str, object]:
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
async def running(request: Request) -> dict[str, object]:
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
async def show(request: Request) -> dict[str, object]:
    """What a model is. Loads it if need be."""
    body = await read_body(request, OllamaShow)
    context = Context.of(request)
    async with context.hub.use(body.model or body.name) as model:
        engine = model.engine
        decoder, vision = engine.config.decoder, engine.config.vision
        facts = {
            "general.architecture": "internvl",
            "general.parameter_count": engine.num_parameters,
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
    if body.keep_alive == 0:
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
    if body.keep_alive is not None:
        seconds = float(body.keep_alive)
        model.keep_alive_s = None if seconds < 0 else seconds


async def _answer(
    request: Request, writer: OllamaWriter, *, turns: Sequence[Turn] = (), texts: Sequence[str] = ()
) -> Response:
    context, body = Context.of(request), writer.body
    options = body.options or Options()
    async with context.hub.use(body.model) as model:
        limit = model.engine.context
        _keep(model, body)
    asked = Asked(
        turns=turns,
        texts=texts,
        options=options.generation(limit),
        max_tiles=options.max_tiles,
        context=options.num_ctx,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=body.grammar,
    )
    is_stream = body.stream is not False
    return await context.answer(request, body.model, asked, writer, is_stream=is_stream)


class OllamaWriter(Writer):
    """Writes answers as Ollama does; `content` puts a text where the route has it."""

    media_type = NDJSON

    def __init__(self, body: OllamaRequest, content: Callable[[str], dict[str, object]]) -> None:
        self.body, self.content = body, content

    def head(self) -> dict[str, object]:
        # The name as it was asked for: some clients compare it.
        return {"model": self.body.model, "created_at": _time()}

    def whole(self, answers: Answers) -> dict[str, object]:
        [answer] = answers.whole
        logprobs = self._logprobs(answer.tokens, answers)
        return {**self.head(), **self.content(answer.text), **logprobs, **_end(answer)}

    async def lines(self, answers: Answers) -> AsyncIterator[str]:
        async for _, event in answers:
            if isinstance(event, Piece):
                rest = {"done": False, **self._logprobs(event.tokens, answers)}
                yield _line({**self.head(), **self.content(event.text), **rest})
            else:
                end = _end(answers.whole[0])
                yield _line({**self.head(), **self.content(""), **end})

    def failed(self, error: ApiError) -> str:
        return _line({"error": error.message})

    def _logprobs(self, tokens: Sequence[TokenLogprob], answers: Answers) -> dict[str, object]:
        return {"logprobs": answers.logprobs(tokens)} if self.body.logprobs else {}


def _end(answer: WholeAnswer) -> dict[str, object]:
    timings = answer.timings
    return {
        "done": True,
        "done_reason": answer.reason,
        "total_duration": _ns(timings.total_s),
        "load_duration": 0,
        "prompt_eval_count": timings.num_prompt_tokens,
        "prompt_eval_duration": _ns(timings.encode_s + timings.prefill_s),
        "eval_count": timings.num_answer_tokens,
        "eval_duration": _ns(timings.decode_s),
    }


def _line(data: dict[str, object]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _time(seconds: float | None = None) -> str:
    moment = datetime.now(UTC)
    if seconds is not None:
        moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _entry(name: str, facts: StoredFacts | None, model: ServedModel | None) -> dict[str, object]:
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


def _details(facts: StoredFacts | None, model: ServedModel | None) -> dict[str, object]:
    count = facts.num_parameters if facts else model.engine.num_parameters if model else 0
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


def _bytes_in_memory(engine: Engine) -> int:
    tensors = (*engine.model.parameters(), *engine.model.buffers())
    return sum(tensor.nbytes for tensor in tensors)
