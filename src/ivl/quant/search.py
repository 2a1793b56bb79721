"""How scales and minima are chosen when weights are quantized.

Everything here makes one number small: the sum of importance * (weight - stored weight)**2 over a
block. No block looks at another, the number of steps is fixed, and each step is sums over a group
of weights. So the same plan runs in C++ (csrc/variant/search.hpp and nested_search.hpp) on as many
blocks at once as a vector has lanes: no lane ever waits for another, and no sum crosses lanes.

The plan, for groups of 16 or 32 weights that share a scale (and, in affine formats, a minimum):

1. **Candidates.** The range of the group is mapped to the levels in a fixed number of ways: a
   little beyond the largest level, exactly to it, and short of it, so that the ends are clipped.
   For each way the weights are rounded to levels and, with these levels held, the best scale (and
   minimum) is a least-squares problem of one (or two) unknowns. The candidate of the least error
   stays.
2. **Refinement.** Twice: round to the levels of the scale that was found, solve again. The error
   never rises.
3. **Second level**, K-quants only: the scales of the 8 or 16 groups are themselves small integers
   times a float16. From the largest group on down that factor is tried at a few values; then, in
   rounds: each group takes the best of its integer scale and the neighbours (affine: of all
   neighbouring pairs of scale and minimum), with weights rounded anew for each; then the factors
   are solved by least squares over the whole block, and rounded to float16.
4. Levels are rounded last, with the scales as they are stored.

Shapes: weights and importance are (n, groups, weights of a group), float32; what is found per group
is (n, groups). llama.cpp's quantizers (ggml-quants.c) follow a like plan with fewer candidates, no
joint choice of scale and minimum, and errors weighted by the weights' own size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ivl.quant.block_format import Floats, to_float16

REFINEMENTS = 2


def round_to_levels(values: Floats, low: int, high: int) -> Floats:
    """Values rounded to integers of [low, high], as float32."""
    return np.clip(np.rint(values), low, high)


def divide(numerator: Floats | np.float32, denominator: Floats) -> Floats:
    """The quotient, and 0 where the denominator is 0 or so small that the quotient overflows."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = numerator / denominator
    return np.where(np.isfinite(quotient), quotient, np.float32(0))


def total(values: Floats) -> Floats:
    """Sum over the weights of a group."""
    return values.sum(axis=-1)


def fit_scale(
    weights: Floats, importance: Floats, low: int, high: int, targets: Sequence[float]
) -> Floats:
    """The scale per group, of either sign, with weight = scale * level, level in [low, high].

    `targets`: the (fractional, signed) levels that the weight of the largest magnitude is mapped
    to, one candidate each. Of equals the first wins, so that magnitudes should fall: the smaller
    scale leaves finer steps to the other groups of a block.
    """
    where = np.abs(weights).argmax(axis=-1)[..., None]
    peak = np.take_along_axis(weights, where, axis=-1)
    weighted = weights * importance
    best = np.full(weights.shape[:-1], -1, np.float32)
    scale = np.zeros_like(best)
    for target in targets:
        levels = round_to_levels(weights * divide(np.float32(target), peak), low, high)
        projection, power = total(weighted * levels), total(importance * levels * levels)
        # With the best scale, projection / power, this much of the weights' power is explained.
        gain = divide(projection * projection, power)
        better = gain > best
        best = np.where(better, gain, best)
        scale = np.where(better, divide(projection, power), scale)
    for _ in range(REFINEMENTS):
        levels = round_to_levels(weights * divide(np.float32(1), scale)[..., None], low, high)
        power = total(importance * levels * levels)
        scale = np.where(power > 0, divide(total(weighted * levels), power), scale)
    return scale


def fit_affine(
    weights: Floats,
    importance: Floats,
    high: int,
    cuts: Sequence[tuple[float, float]],
    *,
    signed: bool,
) -> tuple[Floats, Floats]:
    """Scale and offset per group, with weight = scale * level + offset, level in [0, high].

    `cuts`: for each candidate the shares of the range that are cut off below and above (negative:
    added). Without `signed` the offset is at most 0, as K-quants store it.
    """
    least, most = weights.min(axis=-1), weights.max(axis=-1)
    if not signed:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
    span = most - least
    best = np.full(span.shape, np.inf, np.float32)
    scale, offset = np.zeros_like(span), least
    for below, above in cuts:
        start = least + np.float32(below) * span
        step = span * np.float32((1 - below - above) / high)
        found = _solve_affine(weights, importance, start, step, high, signed=signed)
        better = found[2] < best
        scale = np.where(better, found[0], scale)
        offset = np.where(better, found[1], offset)
        best = np.where(better, found[2], best)
    for _ in range(REFINEMENTS):
        scale, offset, _ = _solve_affine(weights, importance, offset, scale, high, signed=signed)
    return scale, offset


def _solve_affine(
    weights: Floats, importance: Floats, start: Floats, step: Floats, high: int, *, signed: bool
) -> tuple[Floats, Floats, Floats]:
    """Levels from (start, step); then best scale and offset with these; the error less a constant.

    The constant is the same for all candidates of a group: the weights' own power.
    """
    inverse = divide(np.float32(1), step)[..., None]
    levels = round_to_levels((weights - start[..., None]) * inverse, 0, high)
    share = importance * levels
    one, q, qq = total(importance), total(share), total(share * levels)
    x, xq = total(importance * weights), total(share * weights)
    determinant = one * qq - q * q
    # Levels that are all the same leave the scale open: the offset alone then.
    flat = determinant <= 1e-6 * one * qq
    scale = np.where(flat, 0, divide(one * xq - q * x, determinant)).astype(np.float32)
    offset = np.where(flat, divide(x, one), divide(qq * x - q * xq, determinant))
    if not signed:
        above = offset > 0
        scale = np.where(above, divide(xq, qq), scale)
        offset = np.where(above, 0, offset).astype(np.float32)
    return scale, offset, -(scale * xq + offset * x)


def nest_scales(
    weights: Floats,
    importance: Floats,
    scales: Floats,
    levels_range: tuple[int, int],
    scales_range: tuple[int, int],
    starts: Sequence[float],
    rounds: int,
) -> tuple[Floats, Floats, Floats]:
    """Stores the groups' scales as integers times one float16.

    Returns the factor (n,), the integer scales (n, groups) and the levels, shaped as the weights;
    weight = factor * integer scale * level. `starts`: the magnitudes of integer that the largest
    scale is mapped to, one start each; the best one is followed through the rounds.
    """
    where = np.abs(scales).argmax(axis=-1)[:, None]
    peak = np.take_along_axis(scales, where, axis=-1)[:, 0]
    best = np.full(peak.shape, np.inf, np.float32)
    factor, integers = np.zeros_like(peak), np.zeros_like(scales)
    for start in starts:
        trial = to_float16(peak / np.float32(start))
        near = scales * divide(np.float32(1), trial)[:, None]
        whole, errors = _best_integers(
            weights, importance, trial, near, levels_range, scales_range, around=(0,)
        )
        better = errors < best
        best = np.where(better, errors, best)
        factor = np.where(better, trial, factor)
        integers = np.where(better[:, None], whole, integers)
    for _ in range(rounds):
        integers, _ = _best_integers(
            weights, importance, factor, integers, levels_range, scales_range, around=(-1, 0, 1)
        )
        levels = _nested_levels(weights, factor, integers, levels_range)
        units = (integers[..., None] * levels).reshape(len(factor), -1)
        share = importance.reshape(units.shape) * units
        power = total(share * units)
        solved = to_float16(divide(total(share * weights.reshape(units.shape)), power))
        factor = np.where(power > 0, solved, factor)
    return factor, integers, _nested_levels(weights, factor, integers, levels_range)


def _nested_levels(
    weights: Floats, factor: Floats, integers: Floats, levels_range: tuple[int, int]
) -> Floats:
    inverse = divide(np.float32(1), factor[:, None] * integers)[..., None]
    return round_to_levels(weights * inverse, *levels_range)


def _best_integers(
    weights: Floats,
    importance: Floats,
    factor: Floats,
    near: Floats,
    levels_range: tuple[int, int],
    scales_range: tuple[int, int],
    around: Sequence[int],
) -> tuple[Floats, Floats]:
    """Integer scales with the least error near the given ones, and the blocks' errors (n,)."""
    best = np.full(near.shape, np.inf, np.float32)
    chosen = np.zeros_like(near)
    for step in around:
        integers = round_to_levels(near + step, *scales_range)
        levels = _nested_levels(weights, factor, integers, levels_range)
        residue = weights - (factor[:, None] * integers)[..., None] * levels
        errors = total(importance * residue * residue)
        better = errors < best
        best = np.where(better, errors, best)
        chosen = np.where(better, integers, chosen)
    return chosen, best.sum(axis=-1)


def nest_affine(
    weights: Floats,
    importance: Floats,
    scales: Floats,
    minima: Floats,
    high: int,
    scales_high: int,
    starts: Sequence[tuple[float, float]],
    rounds: int,
) -> tuple[Floats, Floats, Floats]:
    """Stores scales and minima (not negative, (n, groups)) as integers times two float16 numbers.

    Returns the two factors (n, 2), the integers (n, groups, 2) and the levels, shaped as the
    weights; weight = factor 0 * scale * level - factor 1 * minimum. `starts`: the integers that
    the largest scale and the largest minimum are mapped to.
    """
    tops = np.stack([scales.max(axis=-1), minima.max(axis=-1)], axis=-1)
    values = np.stack([scales, minima], axis=-1)
    best = np.full(len(weights), np.inf, np.float32)
    factors, integers = np.zeros_like(tops), np.zeros_like(values)
    for start in starts:
        trial = to_float16(tops / np.asarray(start, np.float32))
        near = values * divide(np.float32(1), trial)[:, None]
        whole, errors = _best_pairs(
            weights, importance, trial, near, high, scales_high, around=((0, 0),)
        )
        better = errors < best
        best = np.where(better, errors, best)
        factors = np.where(better[:, None], trial, factors)
        integers = np.where(better[:, None, None], whole, integers)
    neighbours = [(scale, minimum) for scale in (0, -1, 1) for minimum in (0, -1, 1)]
    for _ in range(rounds):
        integers, _ = _best_pairs(
            weights, importance, factors, integers, high, scales_high, neighbours
        )
        levels = _affine_levels(weights, factors, integers, high)
        factors = _solve_factors(weights, importance, integers, levels, factors)
    return factors, integers, _affine_levels(weights, factors, integers, high)


def _affine_levels(weights: Floats, factors: Floats, integers: Floats, high: int) -> Floats:
    pairs = factors[:, None] * integers
    inverse = divide(np.float32(1), pairs[..., :1])
    return round_to_levels((weights + pairs[..., 1:]) * inverse, 0, high)


def _best_pairs(
    weights: Floats,
    importance: Floats,
    factors: Floats,
    near: Floats,
    high: int,
    scales_high: int,
    around: Sequence[tuple[int, int]],
) -> tuple[Floats, Floats]:
    """Pairs of integers with the least error near the given ones, and the blocks' errors (n,)."""
    best = np.full(near.shape[:-1], np.inf, np.float32)
    chosen = np.zeros_like(near)
    for steps in around:
        integers = round_to_levels(near + np.asarray(steps, np.float32), 0, scales_high)
        levels = _affine_levels(weights, factors, integers, high)
        pairs = factors[:, None] * integers
        residue = weights - (pairs[..., :1] * levels - pairs[..., 1:])
        errors = total(importance * residue * residue)
        better = errors < best
        best = np.where(better, errors, best)
        chosen = np.where(better[..., None], integers, chosen)
    return chosen, best.sum(axis=-1)


def _solve_factors(
    weights: Floats, importance: Floats, integers: Floats, levels: Floats, factors: Floats
) -> Floats:
    """The best two factors (n, 2) with integers and levels held, where they are determined."""
    rows = len(weights)
    units = (integers[..., :1] * levels).reshape(rows, -1)
    minima = np.broadcast_to(integers[..., 1:], weights.shape).reshape(rows, -1)
    share, x = importance.reshape(rows, -1), weights.reshape(rows, -1)
    aa, bb = total(share * units * units), total(share * minima * minima)
    ab = total(share * units * minima)
    ax, bx = total(share * units * x), total(share * minima * x)
    determinant = aa * bb - ab * ab
    open_ = determinant <= 1e-6 * aa * bb
    scale = np.where(open_, divide(ax, aa), divide(bb * ax - ab * bx, determinant))
    minimum = np.where(open_, 0, divide(ab * ax - aa * bx, determinant))
    solved = to_float16(np.stack([scale, minimum], axis=-1))
    usable = (solved[:, 0] > 0) & (solved[:, 1] >= 0) & ~(open_ & (bb > 0))
    return np.where(usable[:, None], solved, factors)
