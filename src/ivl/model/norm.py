"""RMSNorm, as the decoders and the 6B vision tower use it."""

import torch
from torch import Tensor, nn

from ivl.kernels import dispatch


class RMSNorm(nn.Module):
    """x / rms(x) * weight. The statistics are taken in float32 whatever the weights' type.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467; the rounding follows `Qwen2RMSNorm` and
    `InternRMSNorm`, which cast back before they multiply by the weight.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if dispatch.runs_triton(x.device):
            from ivl.kernels.triton.pointwise import rms_norm

            return rms_norm(x, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)
