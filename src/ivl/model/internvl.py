"""InternVL: the vision tower, the projector and the decoder as one model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ivl.config import ModelConfig
from ivl.errors import RequestError, UnsupportedError
from ivl.kv import KVType
from ivl.model.cache import (
    KVCache,
    KVStore,
    Segment,
    SplitKVStore,
    TorchKVStore,
    num_blocks_for,
)
from ivl.model.cpu_decoder import CpuKVStore
from ivl.model.decoder import Decoder
from ivl.model.device_map import DeviceMap
from ivl.model.vision import Projector, VisionTower
from ivl.prompt.tiles import IMAGENET_MEAN, IMAGENET_STD


class InternVL(nn.Module):
    """A model without a vision part (`config.vision` is None) has neither tower nor projector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision: nn.Module | None = VisionTower(config.vision) if config.vision else None
        self.projector = Projector(config) if config.vision else None
        self.decoder = Decoder(config.decoder)
        self.devices: DeviceMap | None = None
        self._kv: KVType | None = None

    @property
    def kv(self) -> KVType:
        """What keys and values are kept in; by default as many bits as the model's dtype has."""
        return self._kv or ("32bit" if self.dtype == torch.float32 else "16bit")

    @kv.setter
    def kv(self, kv: KVType) -> None:
        self._kv = kv

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go in; logits come out where the head is."""
        return self.devices.embeddings if self.devices else self.decoder.norm.weight.device

    @property
    def vision_device(self) -> torch.device:
        """Where tiles are encoded."""
        return self.devices.vision if self.devices else self.device

    def encode_tiles(self, tiles_u8: Tensor, vision_batch: int = 4) -> Tensor:
        """uint8 (n, tile_px, tile_px, 3) -> (n, tokens_per_tile, hidden), in the model's dtype.

        At most `vision_batch` tiles are in flight at once, which bounds the activations' memory.
        """
        if self.vision is None or self.projector is None:
            raise UnsupportedError("This is a text-only model: it cannot look at images.")
        px = self.config.tile_px
        if tiles_u8.dtype != torch.uint8 or tuple(tiles_u8.shape[1:]) != (px, px, 3):
            raise RequestError(
                f"Tiles must be uint8 of shape (n, {px}, {px}, 3), "
                f"not {tiles_u8.dtype} of shape {tuple(tiles_u8.shape)}."
            )
        if not len(tiles_u8):
            shape = (0, self.config.tokens_per_tile, self.config.decoder.hidden_size)
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        batches = tiles_u8.split(vision_batch)
        if isinstance(self.vision, VisionTower) and self.vision.streamed is not None:
            patches = self.vision.encode([self.normalize(batch) for batch in batches])
            return torch.cat([self.projector(x) for x in patches])
        return torch.cat([self.projector(self.vision(self.normalize(b))) for b in batches])

    def normalize(self, tiles_u8: Tensor) -> Tensor:
        """uint8 (n, px, px, 3) -> (n, 3, px, px) by ImageNet's mean and deviation, as PyTorch's
        ToTensor and Normalize do it: in float32, cast at the end."""
        device = self.vision_device
        mean = torch.tensor(IMAGENET_MEAN).to(device)
        std = torch.tensor(IMAGENET_STD).to(device)
        # Moved as bytes and changed in place: an expression would write float32 five times.
        pixels = tiles_u8.to(device).permute(0, 3, 1, 2).contiguous().float()
        pixels.div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])
        return pixels.to(self.dtype)

    def embed(self, input_ids: Tensor, is_image: Tensor, features: Tensor | None) -> Tensor:
        """Token embeddings with image features in their places.

        input_ids (tokens,) int64, is_image (tokens,) bool, features (n, tokens_per_tile, hidden)
        -> (1, tokens, hidden). The number of image positions must be that of the features.
        """
        x = self.decoder.embed(input_ids)
        num_places = int(is_image.sum())
        num_features = 0 if features is None else features.shape[0] * features.shape[1]
        if num_places != num_features:
            raise RequestError(
                f"The prompt has {num_places} places for image features, "
                f"and there are {num_features} features."
            )
        if features is not None and num_places:
            x[is_image] = features.flatten(0, 1).to(x.device, x.dtype)
        return x[None]

    def prefill(
        self, x: Tensor, cache: KVCache, *, chunk_tokens: int = 512, num_logits: int | None = None
    ) -> Tensor:
        """Reads embeddings (1, tokens, hidden) into the cache, `chunk_tokens` at a time.

        Returns float32 logits: (vocab,) of the last position, or (num_logits, vocab) of the last
        `num_logits` positions.
        """
        total = cache.length + x.shape[1]
        hidden = [
            self.decoder.extend(chunk, [Segment(cache, len(chunk), total, is_prompt=True)])
            for chunk in x[0].split(chunk_tokens)
        ]
        last = hidden[-1][-1] if num_logits is None else torch.cat(hidden)[-num_logits:]
        return self.decoder.lm_head(last).float()

    def step(self, token: int, cache: KVCache) -> Tensor:
        """Appends one token; returns float32 logits (vocab,) for the next."""
        ids = torch.tensor([token]).to(self.device)
        hidden = self.decoder.extend(self.decoder.embed(ids), [Segment(cache, 1)])
        return self.decoder.lm_head(hidden[-1]).float()

    def extend(self, x: Tensor, segments: Sequence[Segment], num_logits: Sequence[int]) -> Tensor:
        """Reads tokens of several sequences in one pass: chunks of prompts, and single steps.

        x (tokens, hidden): the embeddings of all segments, one after another. `num_logits`: of how
        many of each segment's last tokens logits are wanted. Returns float32 (sum, vocab).
        """
        hidden = self.decoder.extend(x, segments)
        if sum(num_logits) < len(hidden):  # a step of those that are writing wants all
            parts = hidden.split([segment.num_tokens for segment in segments])
            wanted = [part[len(part) - n :] for part, n in zip(parts, num_logits, strict=True)]
            hidden = torch.cat(wanted)
        return self.decoder.lm_head(hidden).float()

    def logits(self, input_ids: Tensor, is_image: Tensor, features: Tensor | None) -> Tensor:
        """(tokens,), (tokens,) bool, (n, tokens_per_tile, hidden) -> (tokens, vocab) float32."""
        x = self.embed(input_ids, is_image, features)
        return self.decoder.lm_head(self.decoder(x)[0]).float()

    def new_store(self, num_blocks: int, kv: KVType | None = None) -> KVStore:
        """Memory for `num_blocks` blocks of keys and values; `kv` None is the model's own `kv`."""
        config, kv = self.config.decoder, kv or self.kv
        fused, rest = self.decoder.num_fused, self.decoder.layer_devices[self.decoder.num_fused :]
        parts: list[KVStore] = []
        if fused:
            parts.append(CpuKVStore(config, num_blocks, kv, num_layers=fused))
        if rest:
            parts.append(
                TorchKVStore(
                    config, num_blocks, dtype=self.dtype, kv=kv, devices=rest, first_layer=fused
                )
            )
        return parts[0] if len(parts) == 1 else SplitKVStore(parts)

    def new_cache(self, capacity: int, kv: KVType | None = None) -> KVCache:
        """An empty cache of its own for one sequence of at most `capacity` tokens."""
        count = num_blocks_for(capacity)
        return KVCache(self.new_store(count, kv), range(count), capacity)
