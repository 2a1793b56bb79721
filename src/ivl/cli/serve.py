"""`ivl serve`: the APIs of OpenAI and Ollama, and a page, over HTTP."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from typer import Option

from ivl.cli.options import Drafting, ModelChoice, with_options
from ivl.cli.terminal import Status
from ivl.engine.options import LOOKUP
from ivl.errors import CheckpointError, ConfigError
from ivl.host import choose_threads

MIB = 1024**2


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
    _check_numbers(serving)
    choose_threads(choice.threads, "--threads")
    from ivl import EngineLimits, LoadOptions, ServerSettings, serve

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
    # A draft model is the first one's alone.
    others = drafting if drafting.draft == LOOKUP else Drafting()
    models = {
        name: LoadOptions(**asdict(model), **asdict(drafting if model is choice else others))
        for name, model in _models(choice, serving.name, serving.also or []).items()
    }
    Status().note_missing_kernels()
    try:
        serve(
            models,
            host=serving.host,
            port=serving.port,
            settings=settings,
            limits=limits,
            tls_cert=serving.tls_cert,
            tls_key=serving.tls_key,
            log_level=serving.log_level,
        )
    except CheckpointError as error:
        if choice.model == os.environ.get("IVL_MODEL"):
            error.hint = f"$IVL_MODEL names it. {error.hint}"
        raise


def _check_numbers(serving: Serving) -> None:
    """ConfigError for what is too small, before anything is imported."""
    least = {"max_sequences": 1, "max_body": 1, "max_images": 1, "max_queued": 0}
    for name, number in {**least, "vision_cache": 0, "drain": 0, "kv_tokens": 1}.items():
        value = getattr(serving, name)
        if value is not None and value < number:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} must be at least {number}, not {value}.")


def _models(choice: ModelChoice, name: str | None, also: list[str]) -> dict[str, ModelChoice]:
    """Name for clients -> model; ConfigError for a name that is given twice."""
    from ivl.serving import name_of

    models = {name or name_of(choice.model): choice}
    for text in also:
        other, equals, model = text.partition("=")
        if not equals:
            other, model = name_of(text), text
        if not other or not model or other in models:
            raise ConfigError(f"--also {text} has no name of its own.", "Give NAME=MODEL.")
        models[other] = replace(choice, model=model, mmproj=None, revision=None)
    return models
