"""The searches of AWQ: a scale for every channel, and how far the range of a group is clipped.

Source: Lin et al., 2023, "AWQ: Activation-aware Weight Quantization", arXiv:2306.00978. Weights
that meet large activations matter most. A channel's weights multiplied by s > 1, and its
activation divided by s, are the same product in exact numbers; rounded to 4 bits the channel errs
less, and the others in its group hardly more. s follows the mean magnitude of the activation,
s = x^a, and a is searched for on a grid. As in AutoAWQ, dividing by the magnitude of the weights,
s = x^a / w^(1 - a), is tried as well. All of it is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ivl.calibrate.activations import Activations
from ivl.quant.awq import GROUP_SIZE, HIGHEST_LEVEL

NUM_EXPONENTS = 20
SHRINKS = tuple(1 - step / 20 for step in range(11))
"""The shares of the range that are tried: 1 to 0.5."""

_ROWS_AT_ONCE = 2048
"""Rows of a matrix that are rounded at once: bounds the temporaries."""


def round_groups(weights: Tensor, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (rows, groups, 128), scales and zero points (rows, groups) of weights (rows, inputs).

    As `ivl.quant.awq.fit`, but that scales are rounded to what bfloat16 and float16 can both hold,
    so that the weights are the same whichever type an engine computes in. `shrink` may be
    (rows, groups). All float32.
    """
    groups = weights.unflatten(1, (-1, GROUP_SIZE))
    low = groups.amin(-1).clamp(max=0) * shrink
    high = groups.amax(-1).clamp(min=0) * shrink
    scales = ((high - low) / HIGHEST_LEVEL).bfloat16().float().clamp(max=65024).half().float()
    scales = torch.where(scales > 0, scales, 1.0)
    zeros = (-low / scales).round_().clamp_(0, HIGHEST_LEVEL)
    levels = groups / scales[..., None]
    levels = levels.add_(zeros[..., None]).round_().clamp_(0, HIGHEST_LEVEL)
    return levels, scales, zeros


def rounded(weights: Tensor, shrink: Tensor | float = 1.0) -> Tensor:
    """What weights (rows, inputs) become when they are stored."""
    levels, scales, zeros = round_groups(weights, shrink)
    return levels.sub_(zeros[..., None]).mul_(scales[..., None]).flatten(1)


def search_scales(
    matrices: Sequence[Tensor], x: Activations, tie: Callable[[Tensor], Tensor] = lambda v: v
) -> Tensor:
    """Scales (inputs,) for the channels that all `matrices`, (outputs, inputs), take in.

    They are the ones of the least error in the matrices' outputs on the sample, each matrix's
    relative to the size of its outputs; all ones if nothing is better. `tie` makes equal what must
    be, where channels share a scale.
    """
    mean, weight = _above_zero(tie(x.mean)), _above_zero(tie(_weight_magnitude(matrices)))
    sample = x.sample
    powers = [(sample @ matrix.T).square().sum().clamp(min=1e-20) for matrix in matrices]
    best = torch.ones_like(mean)
    least = _error(matrices, powers, sample, best)
    for step in range(1, NUM_EXPONENTS + 1):
        exponent = step / NUM_EXPONENTS
        for against in {0.0, 1 - exponent}:
            scales = _normalized(mean**exponent / weight**against)
            error = _error(matrices, powers, sample, scales)
            if error < least:
                best, least = scales, error
    return best


def search_shrinks(weights: Tensor, gram: Tensor) -> Tensor:
    """The share (outputs, groups) of each group's range to keep: that of the least output error.

    The error of a group is e^T G e with its activations' X^T X = G (groups, 128, 128): exact for
    the group alone, over all tokens.
    """
    found = [_best_shrinks(part, gram) for part in weights.split(_ROWS_AT_ONCE)]
    return torch.cat(found)


def _best_shrinks(weights: Tensor, gram: Tensor) -> Tensor:
    best = torch.ones(len(weights), len(gram))
    least = torch.full_like(best, torch.inf)
    for shrink in SHRINKS:
        errors = (rounded(weights, shrink) - weights).unflatten(1, (-1, GROUP_SIZE))
        by_group = errors.transpose(0, 1)
        loss = ((by_group @ gram) * by_group).sum(-1).T
        best = torch.where(loss < least, shrink, best)
        least = torch.minimum(loss, least)
    return best


def _error(
    matrices: Sequence[Tensor], powers: Sequence[Tensor], sample: Tensor, scales: Tensor
) -> float:
    total = 0.0
    for matrix, power in zip(matrices, powers, strict=True):
        for part in matrix.split(_ROWS_AT_ONCE):
            difference = rounded(part * scales).div_(scales).sub_(part)
            total += float((sample @ difference.T).square().sum() / power)
    return total


def _weight_magnitude(matrices: Sequence[Tensor]) -> Tensor:
    """Mean over all rows of |w| relative to the largest of its group, (inputs,)."""
    total, rows = torch.zeros(1), 0
    for matrix in matrices:
        for part in matrix.split(_ROWS_AT_ONCE):
            groups = part.abs().unflatten(1, (-1, GROUP_SIZE))
            total = total + (groups / groups.amax(-1, keepdim=True).clamp(min=1e-20)).sum(0)
        rows += len(matrix)
    return (total / rows).flatten()


def _above_zero(values: Tensor) -> Tensor:
    """A channel that was never met counts as one that was met very little."""
    return values.clamp(min=1e-4 * float(values.mean()) + 1e-12)


def _normalized(scales: Tensor) -> Tensor:
    """Centred on one: what is folded into the layer before stays within the range of 16 bits."""
    return scales / (scales.max() * scales.min()).sqrt()
