"""What a model is asked to do: how many images in how many tiles, at which context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ivl.config import ModelConfig
from ivl.errors import ConfigError, RequestError, UnsupportedError
from ivl.planner.kv_cache import KV_TYPES, KVType, kv_bytes_per_token
from ivl.planner.memory import DEFAULT_CONTEXT, DEFAULT_VISION_BATCH
from ivl.prompt.tiles import check_max_tiles, share_budget

TEXT_TOKENS = 96
"""A system message of the family and a short question."""
ANSWER_TOKENS = 256
MARKERS = 2
"""Tokens around each image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Each of `parallel` sequences has `context` tokens, and shows the images of `tiles`."""

    context: int
    kv: KVType = "16bit"
    tiles: tuple[int, ...] = ()
    """Tiles of each image, thumbnails counted."""
    max_tiles: int = 12
    parallel: int = 1
    vision_batch: int = DEFAULT_VISION_BATCH

    @property
    def num_tiles(self) -> int:
        return sum(self.tiles)

    def image_tokens(self, config: ModelConfig) -> int:
        """Tokens that the images take in the context."""
        if config.vision is None or not self.tiles:
            return 0
        return self.num_tiles * config.tokens_per_tile + MARKERS * len(self.tiles)

    def prompt_tokens(self, config: ModelConfig) -> int:
        return self.image_tokens(config) + TEXT_TOKENS


def plan_workload(
    config: ModelConfig,
    *,
    context: int | None = None,
    kv: str = "16bit",
    images: int = 1,
    max_tiles: int | None = None,
    parallel: int = 1,
    vision_batch: int = DEFAULT_VISION_BATCH,
    tiles: Sequence[int] | None = None,
) -> Workload:
    """The workload with all defaults filled in. `tiles`: those of real images, in their places.

    Without a context it is 8192, or what the images need where that is more. Raises ConfigError,
    RequestError or UnsupportedError for numbers that mean nothing.
    """
    if images < 0:
        raise RequestError(f"{images} images cannot be planned for.", "Give 0 or more.")
    for name, value in (("parallel", parallel), ("vision_batch", vision_batch)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.", "1 is a good start.")
    limit = config.max_tiles if max_tiles is None else max_tiles
    check_max_tiles(limit)
    if config.vision is None:
        images, tiles = 0, ()
    if tiles is None:
        shares = share_budget(images, limit)
        tiles = [n + (1 if config.use_thumbnail and n > 1 else 0) for n in shares]
    work = Workload(
        context=DEFAULT_CONTEXT,
        kv=find_kv(kv),
        tiles=tuple(tiles),
        max_tiles=limit,
        parallel=parallel,
        vision_batch=vision_batch,
    )
    return replace_context(work, config, context)


def replace_context(work: Workload, config: ModelConfig, context: int | None) -> Workload:
    """With another context; ConfigError for one that the model cannot have or that its images
    overflow."""
    decoder = config.decoder
    most = decoder.longest_context
    needed = work.prompt_tokens(config) + ANSWER_TOKENS
    if context is None:
        if work.tiles and work.prompt_tokens(config) >= most:
            raise ConfigError(
                f"{work.num_tiles} tiles are {work.image_tokens(config)} tokens, and the longest "
                f"context of this model is {most}.",
                "Give fewer tiles (--max-tiles) or images.",
            )
        rounded = -(-needed // 1024) * 1024
        return replace(work, context=min(most, max(min(DEFAULT_CONTEXT, most), rounded)))
    if not 1 <= context <= most:
        raise ConfigError(
            f"The context must be between 1 and {most} tokens, not {context}.",
            "8192 holds two pages and a long answer.",
        )
    if work.tiles and work.prompt_tokens(config) >= context:
        raise ConfigError(
            f"A context of {context} tokens has no room for {work.num_tiles} tiles, which are "
            f"{work.image_tokens(config)} tokens.",
            f"Give --context {-(-needed // 256) * 256}, or fewer tiles (--max-tiles) or images.",
        )
    return replace(work, context=context)


def find_kv(name: str) -> KVType:
    """The type of the key/value cache; UnsupportedError for an unknown one."""
    for kv in KV_TYPES:
        if name in (kv, kv.removesuffix("bit")):
            return kv
    raise UnsupportedError(f"There is no cache type {name!r}.", f"Known: {', '.join(KV_TYPES)}.")


def kv_bytes_per_layer_token(config: ModelConfig, kv: KVType) -> int:
    """Keys and values of one layer for one token."""
    return kv_bytes_per_token(config.decoder, kv) // config.decoder.num_layers
