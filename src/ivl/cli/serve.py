"""`ivl serve`: the APIs of OpenAI and Ollama, and a page, over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ivl.cli.inputs import load_model
from ivl.cli.options import Drafting, ModelChoice, with_options
from ivl.cli.terminal import Status
from ivl.engine.options import LOOKUP
from ivl.errors import ConfigError
from ivl.family import find
from ivl.host import choose_threads
from ivl.paths import local_path

if TYPE_CHECKING:
    from ivl.engine.engine import EngineLimits
    from ivl.engine.service import Service
    from ivl.server.hub import StoredFacts

MIB = 1024**2
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Where to listen, and how much to take."""

    host: Annotated[
        str, Option(metavar="HOST", help="Address to listen on; 0.0.0.0 is all of them.")
    ] = "127.0.0.1"
    port: Annotated[int, Option(metavar="PORT", help="Port to listen on; 0 is a free one.")] = 8000
    name: Annotated[str | None, Option(metavar="NAME", help="Name of the model for clients.")] = (
        None
    )
    also: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]MODEL",
            help="Another model, loaded when it is asked for; may be repeated.",
        ),
    ] = None
    api_key: Annotated[
        str | None,
        Option(envvar="IVL_API_KEY", metavar="KEY", help="Key that clients must send."),
    ] = None
    max_sequences: Annotated[int, Option(metavar="N", help="Answers written at once.")] = 16
    max_queued: Annotated[
        int, Option(metavar="N", help="Requests that may wait; more get status 429.")
    ] = 128
    kv_tokens: Annotated[
        int | None,
        Option(
            metavar="TOKENS",
            help="Room for all conversations; by default what --max-sequences can need, or half "
            "of the free memory.",
        ),
    ] = None
    vision_cache: Annotated[
        int, Option(metavar="MIB", help="Memory for images that were seen before.")
    ] = 256
    max_body: Annotated[int, Option(metavar="MIB", help="Largest request.")] = 64
    max_images: Annotated[int, Option(metavar="N", help="Images in a request.")] = 32
    remote_images: Annotated[
        bool,
        Option("--remote-images", help="Fetch images from public http(s) addresses."),
    ] = False
    cors: Annotated[
        list[str] | None,
        Option(metavar="ORIGIN", help="Web pages of this origin may use it; may be repeated."),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Name by which clients call a server without a key; addresses, names without a "
            "dot and .local need none; may be repeated.",
        ),
    ] = None
    tls_cert: Annotated[Path | None, Option(metavar="FILE", help="Certificate for https.")] = None
    tls_key: Annotated[Path | None, Option(metavar="FILE", help="Its private key.")] = None
    drain: Annotated[
        int, Option(metavar="SECONDS", help="Time that running answers get at the end.")
    ] = 30
    log_level: Annotated[str, Option(metavar="LEVEL", help="debug, info, warning or error.")] = (
        "info"
    )


@with_options
def command(*, serving: Serving, choice: ModelChoice, drafting: Drafting) -> None:
    """Serve a model to programs and people.

    Speaks the APIs of OpenAI (/v1) and Ollama (/api), and shows a page at /. Ctrl-C lets running
    answers end, a second one stops at once.
    """
    _check(serving)
    choose_threads(choice.threads, "--threads")
    models = _models(choice, serving.name, serving.also or [])
    from ivl.engine.engine import EngineLimits
    from ivl.server.allocator import bound_free_memory
    from ivl.server.run import log_to_stderr, make_server
    from ivl.server.settings import ServerSettings

    limits = EngineLimits(
        kv_tokens=serving.kv_tokens,
        max_sequences=serving.max_sequences,
        max_queued=serving.max_queued,
        vision_cache_bytes=serving.vision_cache * MIB,
    )
    settings = ServerSettings(
        api_key=serving.api_key,
        cors_origins=tuple(serving.cors or ()),
        allowed_hosts=(serving.host, *(serving.allow_host or ())),
        remote_images=serving.remote_images,
        max_body_bytes=serving.max_body * MIB,
        max_images=serving.max_images,
        drain_s=serving.drain,
    )
    loaders = {
        name: _Loader(model, limits, drafting if model is choice else _alone(drafting))
        for name, model in models.items()
    }
    server = make_server(
        loaders,
        settings,
        stored={name: loader.stored_facts for name, loader in loaders.items()},
        host=serving.host,
        port=serving.port,
        tls_cert=serving.tls_cert,
        tls_key=serving.tls_key,
    )
    log_to_stderr(serving.log_level)
    Status().note_missing_kernels()
    bound_free_memory()
    server.serve_models()


class _Loader:
    """Loads one model when it is called."""

    def __init__(self, choice: ModelChoice, limits: EngineLimits, drafting: Drafting) -> None:
        self.choice, self.limits, self.drafting = choice, limits, drafting

    def __call__(self) -> Service:
        from ivl.server.loading import start_engine

        return start_engine(load_model(self.choice, Status(quiet=True), self.drafting), self.limits)

    def stored_facts(self) -> StoredFacts | None:
        from ivl.server.loading import stored_facts

        return stored_facts(self.choice.model, self.choice.mmproj, self.choice.revision)


def _alone(drafting: Drafting) -> Drafting:
    """How one of the other models guesses: a draft model is the first one's alone."""
    return drafting if drafting.draft == LOOKUP else Drafting()


def _check(serving: Serving) -> None:
    """ConfigError for what can be told before anything is imported or loaded."""
    if not 0 <= serving.port <= 65535:
        raise ConfigError(f"--port is {serving.port}.", "A port is a number from 0 to 65535.")
    level = serving.log_level
    if level not in LOG_LEVELS:
        raise ConfigError(f"There is no --log-level {level!r}.", f"Known: {', '.join(LOG_LEVELS)}.")
    least = {"max_sequences": 1, "max_body": 1, "max_images": 1, "max_queued": 0}
    for name, number in {**least, "vision_cache": 0, "drain": 0, "kv_tokens": 1}.items():
        value = getattr(serving, name)
        if value is not None and value < number:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} must be at least {number}, not {value}.")
    if (serving.tls_cert is None) != (serving.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together.", "Give both, or neither.")
    for file in (serving.tls_cert, serving.tls_key):
        if file is not None and not file.is_file():
            raise ConfigError(f"There is no file {file}.", "Check the spelling.")


def _models(choice: ModelChoice, name: str | None, also: list[str]) -> dict[str, ModelChoice]:
    """Name for clients -> model; ConfigError for a name that is given twice."""
    _require_possible(choice.model)
    models = {name or _name_of(choice.model): choice}
    for text in also:
        other, equals, model = text.partition("=")
        if not equals:
            other, model = _name_of(text), text
        if not other or not model or other in models:
            raise ConfigError(f"--also {text} has no name of its own.", "Give NAME=MODEL.")
        _require_possible(model)
        models[other] = replace(choice, model=model, mmproj=None, revision=None)
    return models


def _require_possible(model: str) -> None:
    """CheckpointError for a name under which no model can be found when it is asked for."""
    if model != "demo" and find(model) is None and "/" not in model:
        if not local_path(model).exists():
            from ivl.facts import no_such_model

            raise no_such_model(model)


def _name_of(model: str) -> str:
    """The name of a size or a hub's model as it is; of a path, its last part."""
    path = local_path(model)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else model
