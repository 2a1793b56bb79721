"""Muon in float32, matrices of one shape at a time.

PyTorch's own Muon orthogonalises matrix by matrix in bfloat16, which took a tenth of a training
step on a processor whose bfloat16 is no faster than its float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

# Keller Jordan's quintic: its slope at 0 is large, so few iterations bring every singular value
# near 1. https://kellerjordan.github.io/posts/muon/
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 4
PIECE = 4
"""Matrices that a thread takes at once."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, whose update is replaced by the nearest orthogonal matrix.

    The update's size is AdamW's usual one (Moonshot's rule: RMS 0.2), so `lr` means what it
    means there. Weight decay is decoupled. Parameters must be matrices.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        """With a `pool` its threads share the work."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._map = pool.map if pool else map

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            pieces = [
                params[i : i + PIECE]
                for params in shapes.values()
                for i in range(0, len(params), PIECE)
            ]
            list(self._map(lambda piece, group=group: self._update(piece, group), pieces))

    @torch.no_grad()
    def _update(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        updates = orthogonalise(self._nesterov(params, group["momentum"]))
        scale = -group["lr"] * 0.2 * max(params[0].shape) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=scale)

    def _nesterov(self, params: list[nn.Parameter], momentum: float) -> Tensor:
        """(matrices, rows, columns)"""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        means = [self.state[p]["momentum"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        for mean, grad in zip(means, grads, strict=True):
            mean.lerp_(grad, 1 - momentum)
        return torch.stack(grads).lerp(torch.stack(means), momentum)


def orthogonalise(x: Tensor) -> Tensor:
    """(n, rows, columns) -> matrices of the same singular vectors, singular values near 1."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x
