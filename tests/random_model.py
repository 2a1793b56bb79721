"""Models of random weights, for tests of what is computed."""

from __future__ import annotations

import torch

from ivl.config import ModelConfig
from ivl.model.build import empty_model
from ivl.model.internvl import InternVL


def random_model(
    config: ModelConfig, *, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", seed: int = 0
) -> InternVL:
    """A model with random weights of the configuration's shapes.

    The weights are scaled by 1 / sqrt(inputs), so that activations stay finite through any depth.
    """
    model = empty_model(config).to_empty(device=device).to(dtype)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and name.endswith("weight"):
                p.fill_(1.0)
            elif p.ndim == 1:
                p.normal_(std=0.02, generator=generator)
            else:
                p.normal_(std=(p[0].numel()) ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)
