"""The demo's network while it is being trained: attention in windows, and two further losses.

`names`: every patch names the characters under it, which teaches the tower to read.
`align`: one head of two decoder layers is told where the next character stands, which teaches the
decoder to follow the lines. Neither leaves anything in the trained model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivl.config import parse_config
from ivl.model.build import empty_model
from ivl.model.decoder import Attention, rotate
from ivl.model.internvl import InternVL
from ivl.model.vision import pixel_shuffle
from training.batches import EMPTY, IGNORE, NUM_CLASSES, Batch
from training.prompts import TOKENS_PER_TILE
from training.tiles import GRID, PARTS_PER_PATCH

ALIGNED_LAYERS = (1, 2)
EMPTY_WEIGHT = 0.1
HEAD_STEPS = 120
BLANKS_KEPT = 24


class Network(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = empty_model(parse_config(config)).to_empty(device="cpu")
        width = self.model.config.vision.hidden_size
        self.names = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, PARTS_PER_PATCH * NUM_CLASSES)
        )
        initialize(self.model)

    def see(self, tiles_u8: Tensor, window: int, printed: Tensor | None = None) -> Tensor:
        """Tiles (b, px, px, 3) -> patch features (b, GRID, GRID, hidden), window by window.

        With `printed` (b, GRID * GRID) only the patches that it marks and a few of the others go
        through the layers; the rest change as those few do on average.
        """
        x = self.model.vision.embed(self.model.normalize(tiles_u8))
        if printed is not None:
            return self.see_printed(x, printed).unflatten(1, (GRID, GRID))
        first, side = x[:, :1], GRID // window
        # (b, GRID * GRID, hidden) -> (b * windows, window * window, hidden)
        x = x[:, 1:].reshape(len(x), side, window, side, window, -1).transpose(2, 3)
        x = x.reshape(-1, window * window, x.shape[-1])
        x = torch.cat([first.repeat_interleave(side * side, dim=0), x], dim=1)
        for layer in self.model.vision.layers:
            x = layer(x)
        x = x[:, 1:].reshape(len(tiles_u8), side, side, window, window, -1)
        return x.transpose(2, 3).reshape(len(tiles_u8), GRID, GRID, -1)

    def see_printed(self, x: Tensor, printed: Tensor) -> Tensor:
        """Embedded patches (b, 1 + GRID * GRID, hidden) -> features without the class token."""
        most = int(printed.sum(1).max())
        count = min(GRID * GRID, -(-(most + BLANKS_KEPT) // 32) * 32)
        # The printed patches come first in this order, then a random choice of blank ones.
        kept = (printed + torch.rand_like(printed)).topk(count, dim=1).indices
        where = kept[:, :, None].expand(-1, -1, x.shape[-1])
        start = x[:, 1:].gather(1, where)
        y = torch.cat([x[:, :1], start], dim=1)
        for layer in self.model.vision.layers:
            y = layer(y)
        change = y[:, 1:] - start
        blank = 1.0 - printed.gather(1, kept)[:, :, None]
        mean = (change * blank).sum(1, keepdim=True) / blank.sum(1, keepdim=True).clamp(min=1)
        rest = mean.expand(-1, GRID * GRID, -1)
        return x[:, 1:] + rest.scatter(1, where, change)

    def project(self, patches: Tensor) -> Tensor:
        """(b, GRID, GRID, hidden) -> image tokens (b, GRID * GRID / 4, hidden)."""
        p = self.model.projector
        x = pixel_shuffle(patches, p.ratio, p.version).flatten(1, 2)
        return p.fc2(F.gelu(p.fc1(p.norm(x))))

    def names_loss(self, patches: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the share of the non-empty places that are named right."""
        logits = self.names(patches.flatten(1, 2)).unflatten(-1, (PARTS_PER_PATCH, NUM_CLASSES))
        weight = torch.ones(NUM_CLASSES, device=logits.device)
        weight[EMPTY] = EMPTY_WEIGHT
        loss = F.cross_entropy(logits.flatten(0, 2).float(), labels.flatten(), weight)
        return loss, share_right(logits, labels, labels != EMPTY)

    def fit_names(self, batches: Iterable[Batch]) -> None:
        """Fits the names' head alone to what the tower sees, when the tower is already trained."""
        with torch.no_grad():
            pairs = [(self.see(b.tiles, GRID).flatten(1, 2), b.patch_labels) for b in batches]
        adam = torch.optim.Adam(self.names.parameters(), lr=3e-3)
        for index in range(HEAD_STEPS):
            features, labels = pairs[index % len(pairs)]
            adam.param_groups[0]["lr"] = 5e-3 * (1 - index / HEAD_STEPS)
            loss, _ = self.names_loss(features[:, None], labels)
            adam.zero_grad()
            loss.backward()
            adam.step()

    def decode(self, batch: Batch, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (b, tokens, hidden) of the decoder, and the alignment loss."""
        decoder = self.model.decoder
        x = decoder.embed(batch.ids)
        counts = TOKENS_PER_TILE * torch.tensor(batch.tiles_per_page, device=x.device)
        place = torch.arange(x.shape[1], device=x.device) - batch.image_start
        shown = (place >= 0) & (place < counts[:, None])
        x = x.masked_scatter(shown[:, :, None], image_tokens.to(x.dtype))
        cos, sin = decoder.rotary(batch.positions, x.shape[1], torch.float32)
        mask = branch_mask(batch.branches)
        align = x.new_zeros(())
        for index, layer in enumerate(decoder.layers):
            normed = layer.attn_norm(x)
            if index in ALIGNED_LAYERS:
                align = align + align_loss(layer.attn, normed, cos, sin, shown, batch.align)
            x = x + attend(layer.attn, normed, cos[:, None], sin[:, None], mask)
            x = x + layer.ffn(layer.ffn_norm(x))
        return decoder.norm(x), align / len(ALIGNED_LAYERS)

    def text_loss(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the answers' tokens by their weights, and the share of them that is right."""
        answers = batch.labels != IGNORE
        labels, weights = batch.labels[answers], batch.weights[answers]
        logits = self.model.decoder.lm_head(hidden[answers]).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses @ weights / weights.sum(), (logits.argmax(-1) == labels).float().mean()


def branch_mask(branches: Tensor) -> Tensor | None:
    """(b, 1, tokens, tokens), true where a token sees another; None where all are in one turn."""
    if int(branches.max()) <= 1:
        return None
    tokens = branches.shape[1]
    seen = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    before = torch.ones(tokens, tokens, dtype=torch.bool, device=branches.device).tril()
    return (seen & before)[:, None]


def attend(attn: Attention, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """The model's own attention, whose tokens have positions of their own and see by a mask."""
    q, k, v = (
        t.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        for t in (attn.q(x), attn.k(x), attn.v(x))
    )
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return attn.o(out.transpose(1, 2).flatten(2))


def align_loss(
    attn: Attention, x: Tensor, cos: Tensor, sin: Tensor, shown: Tensor, target: Tensor
) -> Tensor:
    """How far the first head's attention to the image is from the next character's place.

    `shown` (b, tokens) is true where the image's tokens are.
    """
    places = shown.any(0).nonzero().flatten()
    start, end = int(places[0]), int(places[-1]) + 1
    asked = (target != IGNORE).any(0).nonzero().flatten()
    begin = int(asked[0]) if len(asked) else target.shape[1] - 1
    size = attn.head_dim
    q = F.linear(x[:, begin:], attn.q.weight[:size], attn.q.bias[:size])
    k = F.linear(x[:, start:end], attn.k.weight[:size], attn.k.bias[:size])
    q = rotate(q, cos[:, begin:], sin[:, begin:])
    k = rotate(k, cos[:, start:end], sin[:, start:end])
    scores = (q @ k.transpose(1, 2)).float() * size**-0.5
    scores = scores.masked_fill(~shown[:, None, start:end], -torch.inf)
    target = target[:, begin:].flatten()
    count = (target != IGNORE).sum().clamp(min=1)  # there is nothing to align on a blank page
    total = F.cross_entropy(scores.flatten(0, 1), target, ignore_index=IGNORE, reduction="sum")
    return total / count


def share_right(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels)[counted].sum() / counted.sum().clamp(min=1)


def initialize(model: InternVL) -> None:
    """Small normal weights; positions start as the sines and cosines of row and column."""
    depth = {"vision": len(model.vision.layers), "decoder": len(model.decoder.layers)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.ndim == 1:
                p.fill_(1.0)
            elif name.endswith(("attn.proj.weight", "fc2.weight", "attn.o.weight", "down.weight")):
                part = name.split(".")[0]
                p.normal_(std=0.02 * (2 * depth.get(part, 1)) ** -0.5)
            else:
                p.normal_(std=0.02 if "embed" in name else p[0].numel() ** -0.5)
        model.vision.embed.class_token.normal_(std=0.02)
        model.vision.embed.position[1:] = 0.5 * grid_positions(model.vision.embed.position.shape[1])


def grid_positions(width: int) -> Tensor:
    """Sines and cosines of rows and columns, (GRID * GRID, width)."""
    frequency = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = torch.arange(GRID)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=-1)
    rows = wave[:, None].expand(GRID, GRID, -1)
    columns = wave[None].expand(GRID, GRID, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
