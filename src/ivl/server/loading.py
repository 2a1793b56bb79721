"""From what the command line says to an engine, with its memory reserved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ivl.api import Model
from ivl.checkpoint.hub import locate_pair
from ivl.checkpoint.safetensors import SafetensorsDirectory
from ivl.devices import free_bytes
from ivl.engine.engine import EngineLimits
from ivl.engine.request import EngineRequest
from ivl.engine.service import Service
from ivl.errors import CapacityError, ConfigError, IvlError
from ivl.family import num_parameters
from ivl.footprint.device import GIB
from ivl.kv import BLOCK_TOKENS, kv_bytes_per_layer_token
from ivl.model.source import open_source
from ivl.prompt.template import user_message
from ivl.quant.mixes import mix_of_file_type
from ivl.server.hub import StoredFacts

KV_SHARE = 0.5
"""Of the memory that is free once the weights are there; the rest is for activations, images that
are being decoded, and others."""


def start_engine(model: Model, limits: EngineLimits) -> Service:
    """An engine whose cache holds `limits.kv_tokens`; None: all sequences at the full context, or
    as much as half of the free memory holds.

    CapacityError when that memory does not hold one sequence at the full context, or the number of
    tokens that was asked for.
    """
    engine = model.engine
    devices = engine.model.decoder.layer_devices
    layer_bytes: float = kv_bytes_per_layer_token(engine.config.decoder, engine.model.kv)
    if engine.speculation is not None and (draft := engine.speculation.draft) is not None:
        kept = kv_bytes_per_layer_token(draft.config.decoder, draft.model.kv)
        layer_bytes += kept * draft.config.decoder.num_layers / len(devices)
    token_bytes = layer_bytes * len(devices)
    wanted = limits.kv_tokens or limits.max_sequences * engine.context
    least = limits.kv_tokens or engine.context
    held = _tokens_held(devices, layer_bytes, limits.vision_cache_bytes)
    if held is not None:
        if held < least:
            raise CapacityError(
                f"The cache of {least} tokens needs {least * token_bytes / GIB:.1f} GiB, and "
                f"{max(held, 0) * token_bytes / GIB:.1f} GiB can be had for it.",
                "Use a smaller --context or --kv-tokens, or --kv 8bit.",
            )
        wanted = min(wanted, held)
    tokens = max(wanted, BLOCK_TOKENS)
    shortest = len(EngineRequest.chat(engine, [user_message("Hi")]).ids) + 1
    if tokens < shortest:
        raise ConfigError(
            f"A cache of {tokens} tokens holds no question: the shortest has {shortest}, with its "
            "answer.",
            "Use a larger --kv-tokens, or leave it out.",
        )
    return Service(engine.with_limits(replace(limits, kv_tokens=tokens, for_many=True)))


def _tokens_held(
    devices: Sequence[torch.device], layer_bytes: float, kept_bytes: int
) -> int | None:
    """Tokens whose keys and values find room in the free memory of every device that has layers;
    None where nobody says how much is free."""
    counts = Counter(devices)
    rooms = [
        (free * KV_SHARE - kept_bytes) / (layer_bytes * count)
        for device, count in counts.items()
        if (free := free_bytes(device)) is not None
    ]
    return int(min(rooms)) if rooms else None


def stored_facts(model: str, mmproj: str | Path | None, revision: str | None) -> StoredFacts | None:
    """What the files of a model say, without loading it. None for one that is not on this machine
    yet, or cannot be opened: why is told when it is asked for."""
    try:
        found = locate_pair(model, mmproj, revision=revision, offline=True)
        source = open_source(found.path, found.mmproj)
    except IvlError:
        return None
    parameters = num_parameters(source.config)
    if source.pair is not None:
        text = source.pair.text
        types = Counter(entry.format.name for entry in text.tensors.values())
        kind = mix_of_file_type(text.metadata.get("general.file_type"))
        return StoredFacts(
            num_bytes=source.pair.weights_bytes,
            num_parameters=parameters,
            format="gguf",
            kind=kind or types.most_common(1)[0][0],
        )
    kinds = Counter(entry.dtype for entry in SafetensorsDirectory(source.path).tensors.values())
    return StoredFacts(
        num_bytes=sum(file.stat().st_size for file in source.path.glob("*.safetensors")),
        num_parameters=parameters,
        format="safetensors",
        kind="AWQ" if source.config.quantization == "awq" else kinds.most_common(1)[0][0],
    )
