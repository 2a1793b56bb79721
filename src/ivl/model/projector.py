"""From patch features to the decoder's width: pixel shuffle, then the two-layer `mlp1`.

Source: `modeling_internvl_chat.py` of the official repository, OpenGVLab/InternVL.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ivl.config import ModelConfig
from ivl.kernels.linear import Linear


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
