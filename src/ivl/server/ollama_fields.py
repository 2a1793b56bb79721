"""Bodies of Ollama's API. Source: `docs/api.md` of Ollama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ivl.engine.grammar import Grammar, GrammarCompiler
from ivl.engine.options import GenerationOptions
from ivl.errors import RequestError
from ivl.server.bodies import Fields
from ivl.server.durations import parse_duration
from ivl.server.foreign import OLLAMA
from ivl.server.sampling_fields import MAX_TOP_LOGPROBS, NO_TOOLS, Seed, check_stop

PLACEMENT = (
    *("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "vocab_only", "use_mmap"),
    *("use_mlock", "num_thread", "num_keep", "logits_all", "embedding_only"),
)
"""Options that say how Ollama loads a model. Here that is said when the server is started."""

JsonSchema = dict[str, Any]


class Options(Fields):
    """Ollama's options. What says how a model is placed is taken and changes nothing, as it changes
    no answer; num_ctx must be within the context that the server has."""

    words = OLLAMA
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    num_predict: Annotated[int, Field(ge=-2)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None
    """The penalty weighs so many of the last tokens of prompt and answer, 0: none, -1: all."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tiles: Annotated[int, Field(ge=1, le=1024)] | None = None
    """An addition: tiles that the images share."""

    @field_validator("stop")
    @classmethod
    def _stop_is_short(cls, stop: str | list[str] | None) -> str | list[str] | None:
        check_stop(stop)
        return stop

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
        chosen = {
            "max_tokens": None if predict is None or predict < 0 else max(predict, 1),
            "temperature": self.temperature,
            "top_k": 1 if self.top_p == 0 else self.top_k,
            "top_p": self.top_p or None,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "repetition_penalty": self.repeat_penalty,
            "penalty_window": None if self.repeat_last_n == -1 else self.repeat_last_n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        return GenerationOptions.of(given)


class OllamaRequest(Fields):
    """`keep_alive`: how long the model stays when it is not used; by default until another needs
    its memory."""

    words = OLLAMA
    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    format: Literal["", "json"] | JsonSchema | None = None
    options: Options | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @field_validator("keep_alive")
    @classmethod
    def _is_a_time(cls, given: float | str | None) -> float | str | None:
        if given is not None:
            parse_duration(given)
        return given

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds, negative ones for ever; None: not said."""
        return None if self.keep_alive is None else parse_duration(self.keep_alive)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def compile_format(self, grammars: GrammarCompiler) -> Grammar | None:
        if not self.format:
            return None
        if isinstance(self.format, dict):
            return grammars.json_schema(self.format)
        return grammars.json_object()


class OllamaMessage(Fields):
    words = OLLAMA
    role: Literal["system", "user", "assistant"]
    content: str | None = None
    images: list[str] | None = None
    """Files in base64: images, or PDFs."""

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


class OllamaChat(OllamaRequest):
    messages: list[OllamaMessage] | None = None

    @classmethod
    def unsupported(cls) -> Mapping[str, str]:
        return {"tools": NO_TOOLS, "think": "the models do not think before they answer."}


class OllamaGenerate(OllamaRequest):
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None

    @classmethod
    def unsupported(cls) -> Mapping[str, str]:
        return {
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
