"""Rotary position embedding, with dynamic NTK scaling for contexts beyond the trained length.

Sources: Su et al., 2021, arXiv:2104.09864; the dynamic rule is that of `InternLM2` and of
transformers' `rope_type="dynamic"`: the base grows with the length of the whole sequence.
"""

import torch
from torch import Tensor, nn

from ivl.config import DecoderConfig


class Rotary(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.theta = config.rope_theta
        self.dim = config.head_dim
        self.factor = config.rope_factor
        self.trained_length = config.max_position_embeddings

    def base(self, length: int) -> float:
        """The rotary base for a sequence of `length` tokens."""
        if self.factor is None or length <= self.trained_length:
            return self.theta
        growth = self.factor * length / self.trained_length - (self.factor - 1)
        return self.theta * growth ** (self.dim / (self.dim - 2))

    def forward(self, positions: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (..., tokens) int64 -> cosine and sine, each (..., tokens, head_dim).

        `length` is that of the sequence which the positions belong to: the whole prompt while it
        is being read, so that reading it in chunks rotates as reading it at once does.
        """
        exponent = torch.arange(0, self.dim, 2, dtype=torch.float32, device=positions.device)
        frequency = 1.0 / self.base(length) ** (exponent / self.dim)
        angle = positions[..., None].float() * frequency
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates (batch, heads, tokens, head_dim); the halves of head_dim form the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
