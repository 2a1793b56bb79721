"""OpenAI's `/v1/chat/completions`, `/v1/completions` and `/v1/models`.

Source: OpenAI's API reference. A field that is here works; every other is refused.
"""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AfterValidator, Field, field_validator, model_validator

from ivl import __version__
from ivl.engine.answer import TokenLogprob
from ivl.engine.engine import Engine
from ivl.engine.grammar import Grammar, GrammarCompiler
from ivl.engine.options import GenerationOptions
from ivl.engine.prompt_builder import LARGEST_MAX_TILES
from ivl.server.answers import Answers, Context, WholeAnswer, Writer, sse
from ivl.server.asked import Asked, PictureSource, Turn
from ivl.server.bodies import Fields, body_schema, read_body
from ivl.server.errors import ApiError
from ivl.server.foreign import COMPLETIONS
from ivl.server.hub import ServedModel

router = APIRouter(tags=["OpenAI"])
FINGERPRINT = f"ivl-{__version__}"
DEFAULT_COMPLETION_TOKENS = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
NO_TOOLS = "this server does not call tools."
NO_AUDIO = "this server neither hears nor speaks."


def _check_stop(stop: str | list[str]) -> str | list[str]:
    """ValueError for more than an answer can be searched for at every token, or for an empty
    text."""
    texts = [stop] if isinstance(stop, str) else stop
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise ValueError(f"at most {MAX_STOPS} texts of at most {MAX_STOP_CHARACTERS} characters")
    if not all(texts):
        raise ValueError("a stop text must not be empty")
    return stop


Limit = Annotated[int, Field(ge=1)] | Literal[-1]
"""Of tokens; -1, as other servers have it, is none. More than there is room for is as good."""
MaxTiles = Annotated[int, Field(ge=1, le=LARGEST_MAX_TILES)]
Detail = Literal["auto", "low", "high"]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TopLogprobs = Annotated[int, Field(ge=0, le=20)]
JsonSchema = dict[str, object]
LogitBias = Annotated[
    dict[Annotated[int, Field(ge=0, strict=False)], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024),
]
"""What is added to the logits of tokens, by their ids (JSON has them as strings)."""


class SamplingFields(Fields):
    """How tokens are chosen, by the names that all APIs use."""

    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str | list[str], AfterValidator(_check_stop)] | None = None

    def chosen(self, *, top_k: int | None, **others: object) -> GenerationOptions:
        """The engine's options; what is None is left as it is there. RequestError for what means
        nothing."""
        given = {
            # A mass of nothing leaves the likeliest token, as a top_k of 1 does.
            "top_p": self.top_p or None,
            "top_k": 1 if self.top_p == 0 else top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "stop": self.stop,
            **others,
        }
        return GenerationOptions.of({k: v for k, v in given.items() if v is not None})


class OpenAIRequest(SamplingFields):
    """What several of the requests have in common.

    Without a temperature the likeliest token is taken. top_k, min_p and repetition_penalty are
    additions to OpenAI's API, with the names that other servers use too. `user` is a label, which
    is written to the log.
    """

    model: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    user: str | None = None

    def options(self, limit: int | None, logit_bias: LogitBias | None = None) -> GenerationOptions:
        """`limit` of tokens as of `Limit`."""
        return self.chosen(
            max_tokens=None if limit == -1 else limit,
            temperature=self.temperature,
            top_k=max(self.top_k or 0, 0),
            repetition_penalty=self.repetition_penalty,
            logit_bias=logit_bias,
        )


class Conversed(OpenAIRequest):
    """What requests with messages have beside. metadata, safety_identifier and prompt_cache_key are
    labels, which change nothing."""

    max_tiles: MaxTiles | None = None
    """An addition: tiles that the images of the request share."""
    top_logprobs: TopLogprobs | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class TextFormat(Fields):
    type: Literal["text"]

    def compile(self, grammars: GrammarCompiler) -> Grammar | None:
        return None


class JsonObjectFormat(Fields):
    type: Literal["json_object"]

    def compile(self, grammars: GrammarCompiler) -> Grammar | None:
        return grammars.json_object()


class SchemaOf(Fields):
    """`strict` false, too, is enforced strictly."""

    name: str
    schema_: JsonSchema = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None

    def compile(self, grammars: GrammarCompiler) -> Grammar | None:
        return grammars.json_schema(self.schema_)


class JsonSchemaFormat(Fields):
    type: Literal["json_schema"]
    json_schema: SchemaOf

    def compile(self, grammars: GrammarCompiler) -> Grammar | None:
        return self.json_schema.compile(grammars)


class StructuredOutputs(Fields):
    """An addition to OpenAI's API: exactly one of these forms."""

    regex: str | None = None
    choice: list[str] | None = None
    json_: JsonSchema | None = Field(default=None, alias="json")

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


class TextOf(Fields):
    """A part of a message that is a text; `shown` of every part is what the model is shown."""

    text: str

    @property
    def shown(self) -> str:
        return self.text


class TextPart(TextOf):
    type: Literal["text"]


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

    @property
    def shown(self) -> PictureSource:
        image = self.image_url
        return picture_of(image.url, image.detail, image.max_tiles)


def picture_of(url: str, detail: str | None, max_tiles: int | None) -> PictureSource:
    limit = max_tiles or (1 if detail == "low" else None)
    return PictureSource(url=url, max_tiles=limit, whole=detail == "high")


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

    @property
    def shown(self) -> PictureSource:
        return PictureSource(url=self.file.file_data)


class MessagePart(Protocol):
    """A part of a message, of any API: `shown` is the text or the picture that the model sees."""

    @property
    def shown(self) -> str | PictureSource: ...


class MessageOf(Fields):
    """Who says something; a subclass has the `content`, a text or parts that are `shown`."""

    role: Literal["system", "developer", "user", "assistant"]

    def turn(self, content: str | Sequence[MessagePart]) -> Turn:
        role = "system" if self.role == "developer" else self.role
        return Turn(role, [content] if isinstance(content, str) else [p.shown for p in content])


class ChatMessage(MessageOf):
    content: str | list[Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]]
    name: str | None = None
    """Taken as a label, and not shown to the model."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, given: object) -> object:
        """Without what clients copy into the history from an earlier answer that had none of it."""
        if not isinstance(given, dict):
            return given
        empty = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning")
        given = {k: v for k, v in given.items() if k not in empty or v not in (None, [], "")}
        if given.get("role") in ("tool", "function"):
            raise ValueError(f"a message of the role {given['role']!r}: {NO_TOOLS[:-1]}")
        if given.get("tool_calls"):
            raise ValueError(f"a message with 'tool_calls': {NO_TOOLS[:-1]}")
        if given.get("role") == "assistant" and given.get("content", "") is None:
            given["content"] = ""  # as answers have it that were nothing but tool calls
        return given


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChoicesRequest(OpenAIRequest):
    """What may have several answers, or a form of our own."""

    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    logit_bias: LogitBias | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ChoicesRequest:
        forms = self.structured_outputs
        if forms is not None:
            given = [form for form in (forms.regex, forms.choice, forms.json_) if form is not None]
            if len(given) != 1:
                raise ValueError("structured_outputs has exactly one of regex, choice and json")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def grammar(self, engine: Engine) -> Grammar | None:
        forms = self.structured_outputs
        return forms and forms.compile(engine.grammars)

    def num_choices(self, context: Context) -> int:
        """`n`; ApiError 400 for more than the server gives."""
        count, most = self.n or 1, context.settings.max_choices
        if count > most:
            raise ApiError(400, f"n is {count}, and may be at most {most}.", param="n")
        return count


class ChatRequest(ChoicesRequest, Conversed):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    response_format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
        | None
    ) = None

    unsupported: ClassVar[Mapping[str, str]] = {
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

    def grammar(self, engine: Engine) -> Grammar | None:
        form = self.structured_outputs or self.response_format
        return form and form.compile(engine.grammars)


class CompletionRequest(ChoicesRequest):
    """A text to go on from, without turns. 16 tokens unless told otherwise, as at OpenAI's."""

    words = COMPLETIONS
    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Literal[1] | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "echo": "only what is new comes back.",
        "suffix": "the models do not fill in the middle.",
    }

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: str | list[str]) -> str | list[str]:
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not texts or not all(texts):
            raise ValueError("give at least one text, and no empty one")
        return prompt


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answers the last message of a conversation, which may show images and PDFs."""
    context, body = Context.of(request), await read_body(request, ChatRequest)
    count = body.num_choices(context)
    asked = Asked(
        turns=[message.turn(message.content) for message in body.messages],
        options=body.options(body.max_completion_tokens or body.max_tokens, body.logit_bias),
        max_tiles=body.max_tiles,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=body.grammar,
    )
    writer, is_stream = ChatWriter(body), bool(body.stream)
    return await context.answer(
        request, body.model, asked, writer, is_stream=is_stream, num_answers=count
    )


@router.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
async def completions(request: Request) -> Response:
    """Goes on from a text, without turns."""
    context, body = Context.of(request), await read_body(request, CompletionRequest)
    count, most = body.num_choices(context), context.settings.max_choices
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) * count > most:
        raise ApiError(400, f"At most {most} completions at once.", param="prompt")
    if body.stream and len(prompts) > 1:
        raise ApiError(400, "A stream has one prompt.", param="prompt")
    asked = Asked(
        texts=prompts,
        options=body.options(body.max_tokens or DEFAULT_COMPLETION_TOKENS, body.logit_bias),
        num_logprobs=body.logprobs,
        grammar=body.grammar,
    )
    writer, is_stream = CompletionWriter(body), bool(body.stream)
    return await context.answer(
        request, body.model, asked, writer, is_stream=is_stream, num_answers=count
    )


@router.get("/v1/models")
async def models(request: Request) -> dict[str, object]:
    """The models that requests can name."""
    hub = Context.of(request).hub
    return {"object": "list", "data": [_model_card(name, hub.created) for name in hub.names]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, object]:
    """One of them."""
    hub = Context.of(request).hub
    return _model_card(hub.find(name), hub.created)


def _model_card(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "ivl"}


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


class ChoicesWriter(Writer):
    """Writes several answers to one request as choices."""

    id_prefix: str
    kind: str
    chunk_kind: str
    chunk_tail: ClassVar[dict[str, None]]
    """What ends a chunk when the usage is to come at the end."""

    def __init__(self, body: ChatRequest | CompletionRequest) -> None:
        self.body = body
        self.id, self.created = new_id(self.id_prefix), int(time.time())

    @abstractmethod
    def choice(
        self, index: int, part: WholeAnswer, answers: Answers, *, is_piece: bool = False
    ) -> dict[str, object]:
        """A whole answer, or a piece of one in a stream."""

    def beginnings(self, answers: Answers) -> list[dict[str, object]]:
        """Choices that come before all others in a stream."""
        return []

    def tail(self, answers: Answers) -> dict[str, object]:
        """What is told of all answers together. A prompt is read once: by the answer that found
        least of it in the cache."""
        timings = [answer.timings for answer in answers.whole]
        prompts = sum(t.num_prompt_tokens for t in timings[:: self.body.n or 1])
        written = sum(t.num_answer_tokens for t in timings)
        usage = {
            "prompt_tokens": prompts,
            "completion_tokens": written,
            "total_tokens": prompts + written,
            "prompt_tokens_details": {"cached_tokens": min(t.num_cached_tokens for t in timings)},
        }
        return {"usage": usage}

    def whole(self, answers: Answers) -> dict[str, object]:
        choices = [self.choice(i, answer, answers) for i, answer in enumerate(answers.whole)]
        return {**self._head(self.kind, answers.model), "choices": choices, **self.tail(answers)}

    async def lines(self, answers: Answers) -> AsyncIterator[str]:
        tail = self.chunk_tail if self.body.include_usage else {}

        def chunk(choices: list[dict[str, object]], tail: Mapping[str, object]) -> str:
            head = self._head(self.chunk_kind, answers.model)
            return sse({**head, "choices": choices, **tail})

        for choice in self.beginnings(answers):
            yield chunk([choice], tail)
        async for index, event in answers:
            part = WholeAnswer()
            part.add(event)
            yield chunk([self.choice(index, part, answers, is_piece=True)], tail)
        if self.body.include_usage:
            yield chunk([], self.tail(answers))
        yield "data: [DONE]\n\n"

    def _head(self, kind: str, model: ServedModel) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": model.name,
            "system_fingerprint": FINGERPRINT,
        }


class ChatWriter(ChoicesWriter):
    id_prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    chunk_tail: ClassVar[dict[str, None]] = {"usage": None}

    def beginnings(self, answers: Answers) -> list[dict[str, object]]:
        delta = {"role": "assistant", "content": ""}
        nothing, indices = WholeAnswer(), range(self.body.n or 1)
        return [
            {**self.choice(i, nothing, answers, is_piece=True), "delta": delta} for i in indices
        ]

    def choice(
        self, index: int, part: WholeAnswer, answers: Answers, *, is_piece: bool = False
    ) -> dict[str, object]:
        logprobs = None
        if self.body.logprobs and (part.tokens or part.reason is None):
            logprobs = {"content": answers.logprobs(part.tokens), "refusal": None}
        choice = {"index": index, "finish_reason": part.reason, "logprobs": logprobs}
        if is_piece:
            return {**choice, "delta": {"content": part.text} if part.reason is None else {}}
        message = {"role": "assistant", "content": part.text, "refusal": None}
        return {**choice, "message": message}

    def tail(self, answers: Answers) -> dict[str, object]:
        """Our own addition: where the time of the first answer, which read the prompt, went."""
        first = answers.whole[0].timings
        timings = {
            "queue_s": round(first.queue_s, 4),
            "first_token_s": round(first.first_token_s, 4),
            "total_s": round(first.total_s, 4),
            "num_tiles": first.num_tiles,
            "num_cached_tokens": first.num_cached_tokens,
        }
        return {**super().tail(answers), "timings": timings}


class CompletionWriter(ChoicesWriter):
    id_prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    chunk_tail: ClassVar[dict[str, None]] = {}

    def choice(
        self, index: int, part: WholeAnswer, answers: Answers, *, is_piece: bool = False
    ) -> dict[str, object]:
        logprobs = None
        if self.body.logprobs is not None and part.tokens:
            logprobs = _completion_logprobs(part.tokens, answers.model)
        reason = part.reason
        return {"index": index, "text": part.text, "finish_reason": reason, "logprobs": logprobs}


def _completion_logprobs(tokens: Sequence[TokenLogprob], model: ServedModel) -> dict[str, object]:
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
