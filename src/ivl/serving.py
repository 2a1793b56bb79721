"""The function behind `ivl serve`: models, each with the memory of its engine, behind an address.

ivl.serve({"small": "1b", "large": "8b"}, port=8080)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ivl.checkpoint.hub import locate_pair, no_such_model
from ivl.checkpoint.safetensors import SafetensorsDirectory
from ivl.engine.engine import Engine, EngineLimits
from ivl.engine.request import EngineRequest
from ivl.engine.service import Service
from ivl.errors import CapacityError, ConfigError, IvlError
from ivl.family import find
from ivl.footprint.placement import GIB
from ivl.footprint.tensors import num_parameters
from ivl.kv import BLOCK_TOKENS
from ivl.loading import LoadOptions, cache_token_bytes, load_engine, tokens_that_fit
from ivl.model.source import open_source
from ivl.paths import local_path
from ivl.prompt.template import user_message
from ivl.quant.mixes import mix_of_file_type
from ivl.server.hub import StoredFacts
from ivl.server.run import LOG_LEVELS, bound_free_memory, log_to_stderr, make_server
from ivl.server.settings import ServerSettings

SERVER_LIMITS = EngineLimits(vision_cache_bytes=256 * 1024**2)
Served = str | os.PathLike[str] | LoadOptions
"""A model as of `ivl.load`, with its options or by its name or path alone."""


def serve(
    models: Served | Mapping[str, Served] = "demo",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServerSettings | None = None,
    limits: EngineLimits | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    log_level: str | None = "info",
) -> None:
    """Serves one model, or several by the names that clients use, until SIGINT or SIGTERM; then
    what runs may end. A second SIGINT stops at once.

    The first model is loaded at the start, the others when they are asked for. `port` 0 is a free
    one, which the log tells. `limits` are those of each engine; without `kv_tokens` its cache holds
    all sequences at the full context, or as much as half of the free memory does. `tls_cert` and
    `tls_key`: PEM files for https. `log_level`: debug, info, warning or error, to stderr; None
    leaves logging as it is. ConfigError for what cannot be, before anything is loaded; then what
    keeps the first model from being loaded, and what an engine has failed with.
    """
    if not isinstance(models, Mapping):
        one = _options_of(models)
        models = {name_of(one.model): one}
    chosen = {name: _options_of(model) for name, model in models.items()}
    if not chosen:
        raise ConfigError("There is no model to serve.", 'Name one: {"small": "1b"}.')
    limits = limits or SERVER_LIMITS
    if log_level not in (None, *LOG_LEVELS):
        known = ", ".join(LOG_LEVELS)
        raise ConfigError(f"There is no `log_level` {log_level!r}.", f"Known: {known}.")
    server = make_server(
        {name: partial(_load, options, limits) for name, options in chosen.items()},
        settings or ServerSettings(),
        stored={name: partial(stored_facts, options) for name, options in chosen.items()},
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    if log_level is not None:
        log_to_stderr(log_level)
    bound_free_memory()
    server.serve_models()


def _options_of(model: Served) -> LoadOptions:
    """CheckpointError for a name under which no model can be found when it is asked for."""
    options = model if isinstance(model, LoadOptions) else LoadOptions(model=model)
    name = os.fspath(options.model)
    is_hubs = name == "demo" or find(name) is not None or "/" in name
    if not is_hubs and not local_path(name).exists():
        raise no_such_model(name)
    return options


def name_of(model: str | os.PathLike[str]) -> str:
    """What clients call a model: a size or a hub's model as it is, a path by its last part."""
    path = local_path(os.fspath(model))
    return path.resolve().name.removesuffix(".gguf") if path.exists() else os.fspath(model)


def _load(options: LoadOptions, limits: EngineLimits) -> Service:
    return start_engine(load_engine(options), limits)


def start_engine(engine: Engine, limits: EngineLimits) -> Service:
    """An engine whose cache holds `limits.kv_tokens`; None: all sequences at the full context, or
    as much as half of the free memory holds.

    CapacityError when that memory does not hold one sequence at the full context, or the number of
    tokens that was asked for.
    """
    token_bytes = cache_token_bytes(engine)
    wanted = limits.kv_tokens or limits.max_sequences * engine.context
    least = limits.kv_tokens or engine.context
    held = tokens_that_fit(engine, limits)
    if held is not None:
        if held < least:
            raise CapacityError(
                f"The cache of {least} tokens needs {least * token_bytes / GIB:.1f} GiB, and "
                f"{max(held, 0) * token_bytes / GIB:.1f} GiB can be had for it.",
                'Use a smaller `context` or `kv_tokens`, or `kv="8bit"`.',
            )
        wanted = min(wanted, held)
    tokens = max(wanted, BLOCK_TOKENS)
    shortest = len(EngineRequest.chat(engine, [user_message("Hi")]).ids) + 1
    if tokens < shortest:
        raise ConfigError(
            f"A cache of {tokens} tokens holds no question: the shortest has {shortest}, with its "
            "answer.",
            "Use a larger `kv_tokens`, or leave it out.",
        )
    return Service(engine.with_limits(replace(limits, kv_tokens=tokens, for_many=True)))


def stored_facts(options: LoadOptions) -> StoredFacts | None:
    """What the files of a model say, without loading it. None for one that is not on this machine
    yet, or cannot be opened: why is told when it is asked for."""
    try:
        found = locate_pair(options.model, options.mmproj, revision=options.revision, offline=True)
        source = open_source(found.path, found.mmproj)
    except IvlError:
        return None
    if source.pair is not None:
        text, num_bytes = source.pair.text, source.pair.weights_bytes
        types = Counter(entry.format.name for entry in text.tensors.values())
        kind = mix_of_file_type(text.metadata.get("general.file_type"))
    else:
        num_bytes = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
        tensors = SafetensorsDirectory(source.path).tensors
        types = Counter(entry.dtype for entry in tensors.values())
        kind = "AWQ" if source.config.quantization == "awq" else None
    return StoredFacts(
        num_bytes=num_bytes,
        num_parameters=num_parameters(source.config),
        format="safetensors" if source.pair is None else "gguf",
        kind=kind or types.most_common(1)[0][0],
    )
