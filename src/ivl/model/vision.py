"""InternViT, the vision tower: 448 px tiles to patch features.

Two variants share this file: InternViT-300M (LayerNorm, biased qkv) and InternViT-6B (RMSNorm,
RMSNorm over the whole width of queries and keys, unbiased qkv). Source: `modeling_intern_vit.py`
of the official repository, OpenGVLab/InternVL.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivl.config import ModelConfig, VisionConfig
from ivl.kernels.linear import Linear, RMSNorm
from ivl.model.streaming import StreamedLayers


def make_norm(config: VisionConfig) -> nn.Module:
    if config.norm == "rms_norm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps)


class PatchEmbedding(nn.Module):
    """Cuts tiles into patches, prepends the class token and adds learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_px = config.patch_px
        width = config.hidden_size
        self.patch = nn.Conv2d(config.num_channels, width, config.patch_px, config.patch_px)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(1 + config.num_patches, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, tile_px, tile_px) -> (n, 1 + patches, hidden)."""
        # A convolution whose stride is its kernel is one matrix product over the patches.
        weight = self.patch.weight.flatten(1)
        return self.complete(F.linear(self.cut(pixels), weight, self.patch.bias))

    def cut(self, pixels: Tensor) -> Tensor:
        """(n, 3, tile_px, tile_px) -> (n, patches, 3 * patch_px^2), each patch channel by channel,
        as a convolution's weight has it."""
        px = self.patch_px
        # (n, 3, tile_px, tile_px) -> (n, 3, rows, patch_px, columns, patch_px)
        parts = pixels.unflatten(3, (-1, px)).unflatten(2, (-1, px))
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def complete(self, x: Tensor) -> Tensor:
        """The products of patches (n, patches, hidden) -> (n, 1 + patches, hidden)."""
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        return x + self.position


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.q_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, positions, hidden) -> the same shape."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = self.q_norm(q), self.k_norm(k)
        # (n, positions, hidden) -> (n, heads, positions, head_dim)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel before it joins the residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config)
        self.attn = VisionAttention(config)
        self.scale1 = nn.Parameter(torch.ones(config.hidden_size))
        self.norm2 = make_norm(config)
        self.mlp = VisionMLP(config)
        self.scale2 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attn(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class VisionTower(nn.Module):
    """The layers up to the selected one; there is no final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embed = PatchEmbedding(config)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))
        self.streamed: StreamedLayers | None = None

    def stream_to(self, device: torch.device) -> None:
        """The layers' weights stay where they are, in main memory, and run on `device`."""
        self.streamed = StreamedLayers(self.layers, device)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised (n, 3, tile_px, tile_px) -> (n, patches, hidden), without the class token."""
        return self.encode([pixels])[0]

    def encode(self, chunks: Sequence[Tensor]) -> list[Tensor]:
        """`forward` of several batches. What is streamed passes once for all of them."""
        if self.streamed is not None:
            found = self.streamed([self.embed(pixels) for pixels in chunks])
            return [x[:, 1:] for x in found]
        return [self._run(self.embed(pixels))[:, 1:] for pixels in chunks]

    def _run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def pixel_shuffle(x: Tensor, ratio: float, version: str) -> Tensor:
    """Folds neighbouring patches into channels.

    (n, rows, columns, c) -> (n, rows * ratio, columns * ratio, c / ratio^2), row-major for `v2`.
    `v1` leaves the result transposed, as the first InternVL models were trained.
    """
    n, rows, columns, c = x.shape
    x = x.reshape(n, rows, round(columns * ratio), round(c / ratio)).transpose(1, 2)
    x = x.reshape(n, round(columns * ratio), round(rows * ratio), round(c / ratio**2))
    return x if version == "v1" else x.transpose(1, 2)


class Projector(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ratio = config.downsample_ratio
        self.version = config.ps_version
        self.side = config.patches_per_side
        self.norm = nn.LayerNorm(config.shuffled_size, config.projector_norm_eps)
        self.fc1 = Linear(config.shuffled_size, config.decoder.hidden_size)
        self.fc2 = Linear(config.decoder.hidden_size, config.decoder.hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(n, side * side, vision hidden) -> (n, tokens_per_tile, decoder hidden)."""
        x = patches.unflatten(1, (self.side, self.side))
        x = pixel_shuffle(x, self.ratio, self.version).flatten(1, 2)
        return self.fc2(F.gelu(self.fc1(self.norm(x))))
