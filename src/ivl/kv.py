"""The key/value cache as numbers: its types, its blocks, and bytes for a token."""

from __future__ import annotations

from typing import Literal, get_args

from ivl.config import DecoderConfig
from ivl.errors import UnsupportedError

BLOCK_TOKENS = 32
"""Tokens of a block, the unit that sequences take memory in."""

KVType = Literal["32bit", "16bit", "8bit"]
KV_TYPES: tuple[KVType, ...] = get_args(KVType)

QUANTIZED_GROUP = 32
"""Neighbouring channels of a key or value that share one float32 scale at 8 bits."""


def find_kv(name: str) -> KVType:
    """The type of a cache, with or without `bit`; UnsupportedError for an unknown one."""
    for kv in KV_TYPES:
        if name in (kv, kv.removesuffix("bit")):
            return kv
    raise UnsupportedError(f"There is no cache type {name!r}.", f"Known: {', '.join(KV_TYPES)}.")


def scale_group(config: DecoderConfig) -> int:
    """Channels that share a scale at 8 bits: all of a head that groups do not divide."""
    whole = config.head_dim % QUANTIZED_GROUP == 0
    return QUANTIZED_GROUP if whole else config.head_dim


def kv_bytes_per_token(config: DecoderConfig, kv: KVType) -> int:
    """Keys and values of all layers for one token; grouped heads count once a group."""
    return config.num_layers * kv_bytes_per_layer_token(config, kv)


def kv_bytes_per_layer_token(config: DecoderConfig, kv: KVType) -> int:
    """Keys and values of one layer for one token."""
    numbers = 2 * config.num_kv_heads * config.head_dim
    if kv == "8bit":
        return numbers + numbers // scale_group(config) * 4
    return numbers * (4 if kv == "32bit" else 2)
