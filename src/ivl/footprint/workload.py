"""What a model is asked to do: how many images in how many tiles, at which context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ivl.config import ModelConfig
from ivl.errors import ConfigError, RequestError
from ivl.kv import KVType, find_kv
from ivl.prompt.tiles import check_max_tiles, share_budget

DEFAULT_CONTEXT = 8192
DEFAULT_VISION_BATCH = 4
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
    if config.vision is None or tiles is None:
        tiles = _largest_tiles(config, images, limit)
    work = Workload(
        context=DEFAULT_CONTEXT,
        kv=find_kv(kv),
        tiles=tuple(tiles),
        max_tiles=limit,
        parallel=parallel,
        vision_batch=vision_batch,
    )
    return replace_context(work, config, context)


def loaded_workload(
    config: ModelConfig,
    *,
    context: int,
    kv: KVType = "16bit",
    vision_batch: int = DEFAULT_VISION_BATCH,
) -> Workload:
    """What memory is held for when a model is loaded: one page, as large as the model takes and
    the context holds."""
    tiles = _largest_tiles(config, 1, config.max_tiles)
    room = (context - TEXT_TOKENS - MARKERS - 1) // config.tokens_per_tile if tiles else 0
    return Workload(
        context=context,
        kv=kv,
        tiles=tuple(min(n, room) for n in tiles if room > 0),
        max_tiles=config.max_tiles,
        vision_batch=vision_batch,
    )


def _largest_tiles(config: ModelConfig, images: int, limit: int) -> tuple[int, ...]:
    """The most tiles that each of some images may have, thumbnails counted."""
    if config.vision is None:
        return ()
    shares = share_budget(images, limit)
    return tuple(n + (1 if config.use_thumbnail and n > 1 else 0) for n in shares)


def resolve_context(context: int | None, config: ModelConfig) -> int:
    """The context in tokens; ConfigError for a length that the model cannot have."""
    usual = min(DEFAULT_CONTEXT, config.decoder.max_position_embeddings)
    if context is None:
        return usual
    most = config.decoder.longest_context
    if not 1 <= context <= most:
        raise ConfigError(
            f"The context must be between 1 and {most} tokens, not {context}.",
            f"Leave it out for {usual}.",
        )
    return context


def replace_context(work: Workload, config: ModelConfig, context: int | None) -> Workload:
    """With another context; ConfigError for one that the model cannot have or that its images
    overflow."""
    most = config.decoder.longest_context
    needed = work.prompt_tokens(config) + ANSWER_TOKENS
    if context is None:
        if work.tiles and work.prompt_tokens(config) >= most:
            raise ConfigError(
                f"{work.num_tiles} tiles are {work.image_tokens(config)} tokens, and the longest "
                f"context of this model is {most}.",
                "Give fewer tiles (--max-tiles) or images.",
            )
        rounded = -(-needed // 1024) * 1024
        return replace(work, context=min(most, max(resolve_context(None, config), rounded)))
    resolve_context(context, config)
    if work.tiles and work.prompt_tokens(config) >= context:
        raise ConfigError(
            f"A context of {context} tokens has no room for {work.num_tiles} tiles, which are "
            f"{work.image_tokens(config)} tokens.",
            f"Give --context {-(-needed // 256) * 256}, or fewer tiles (--max-tiles) or images.",
        )
    return replace(work, context=context)
