"""The key/value cache of one sequence (or of equally long ones): contiguous, preallocated."""

import torch
from torch import Tensor

from ivl.config import DecoderConfig
from ivl.errors import CapacityError


class KVCache:
    """Keys and values of every layer, (batch, kv_heads, capacity, head_dim) each.

    `length` tokens are valid. A forward pass writes behind them and `advance` makes what was
    written valid, so a pass that fails leaves the cache as it was.
    """

    def __init__(
        self,
        config: DecoderConfig,
        capacity: int,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = [
            torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)
        ]
        self.values = [torch.empty_like(k) for k in self.keys]
        self.capacity = capacity
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (batch, kv_heads, tokens, head_dim) behind the valid part.

        Returns all keys and values up to and including the new ones, as views.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise CapacityError(
                f"The conversation needs {end} tokens, and the cache holds {self.capacity}.",
                "Load the model with a larger context, or use fewer or smaller images.",
            )
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, num_tokens: int) -> None:
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on."""
        assert 0 <= length <= self.length
        self.length = length
