// How K-quants store the scales (and minima) of a block's groups: `nest_scales` and `nest_affine` of
// src/ivl/quant/search.py, with one block in each lane of a vector.
#pragma once

#include "variant/search.hpp"

namespace ivl::IVL_VARIANT::quant {

// An integer itself and its neighbours.
constexpr float kSteps[] = {0.0f, -1.0f, 1.0f};

// weight = factor * integer of its group * level.
template <int kGroups>
struct Nested {
  Lanes factor;
  Lanes integers[kGroups];
};

template <int kSize, bool kWeighted>
inline Lanes error_of_scale(Group<kWeighted> group, Lanes scale, Range levels) {
  const Lanes inverse = inverse_of(scale);
  Lanes error = splat(0.0f);
  for (int i = 0; i < kSize; ++i) {
    const Lanes residue = group.x[i] - scale * round_to_levels(group.x[i], inverse, levels);
    error += group.share(i) * residue * residue;
  }
  return error;
}

template <int kGroups, int kSize, bool kWeighted>
Nested<kGroups> start_scales(Group<kWeighted> block, const Lanes* scales, Range levels,
                             Range whole, List<float> starts) {
  Nested<kGroups> nested = {};
  Lanes peak = scales[0], best = splat(kLargest);
  for (int g = 1; g < kGroups; ++g)
    peak = magnitude(scales[g]) > magnitude(peak) ? scales[g] : peak;
  for (float start : starts) {
    const Lanes factor = to_float16(peak / start), inverse = inverse_of(factor);
    Lanes integers[kGroups], error = splat(0.0f);
    for (int g = 0; g < kGroups; ++g) {
      integers[g] = round_to_levels(scales[g], inverse, whole);
      error += error_of_scale<kSize>(block.from(g * kSize), factor * integers[g], levels);
    }
    const IntLanes better = error < best;
    best = better ? error : best;
    nested.factor = better ? factor : nested.factor;
    for (int g = 0; g < kGroups; ++g)
      nested.integers[g] = better ? integers[g] : nested.integers[g];
  }
  return nested;
}

template <int kGroups, int kSize, bool kWeighted>
Nested<kGroups> nest_scales(Group<kWeighted> block, const Lanes* scales, Range levels, Range whole,
                            List<float> starts, int rounds) {
  auto nested = start_scales<kGroups, kSize>(block, scales, levels, whole, starts);
  for (int round = 0; round < rounds; ++round) {
    Lanes projection = splat(0.0f), power = splat(0.0f);
    for (int g = 0; g < kGroups; ++g) {
      const Group<kWeighted> group = block.from(g * kSize);
      Lanes best = splat(kLargest), chosen = splat(0.0f);
      for (float step : kSteps) {
        const Lanes integer = clip(nested.integers[g] + step, whole);
        const Lanes error = error_of_scale<kSize>(group, nested.factor * integer, levels);
        chosen = error < best ? integer : chosen;
        best = smaller(error, best);
      }
      nested.integers[g] = chosen;
      const ScaleSums sums = scale_sums<kSize>(group, inverse_of(nested.factor * chosen), levels);
      projection += chosen * sums.projection;
      power += chosen * chosen * sums.power;
    }
    const Lanes solved = to_float16(divide(projection, power));
    nested.factor = power > 0.0f ? solved : nested.factor;
  }
  return nested;
}

// weight = scale factor * scale of its group * level - minimum factor * minimum of its group.
template <int kGroups>
struct NestedAffine {
  Lanes scale_factor, minimum_factor;
  Lanes scales[kGroups], minima[kGroups];
};

template <int kSize, bool kWeighted>
inline Lanes error_of_pair(Group<kWeighted> group, Lanes scale, Lanes minimum, Range levels) {
  const Lanes inverse = inverse_of(scale);
  Lanes error = splat(0.0f);
  for (int i = 0; i < kSize; ++i) {
    const Lanes lifted = group.x[i] + minimum;
    const Lanes residue = lifted - scale * round_to_levels(lifted, inverse, levels);
    error += group.share(i) * residue * residue;
  }
  return error;
}

template <int kGroups, int kSize, bool kWeighted>
NestedAffine<kGroups> start_pairs(Group<kWeighted> block, const Affine* fits, Range levels,
                                  Range whole, List<Pair> starts) {
  NestedAffine<kGroups> nested = {};
  Lanes top_scale = fits[0].scale, top_minimum = -fits[0].offset, best = splat(kLargest);
  for (int g = 1; g < kGroups; ++g) {
    top_scale = larger(fits[g].scale, top_scale);
    top_minimum = larger(-fits[g].offset, top_minimum);
  }
  for (const Pair& start : starts) {
    NestedAffine<kGroups> trial;
    trial.scale_factor = to_float16(top_scale / start.first);
    trial.minimum_factor = to_float16(top_minimum / start.second);
    const Lanes per_scale = inverse_of(trial.scale_factor);
    const Lanes per_minimum = inverse_of(trial.minimum_factor);
    Lanes error = splat(0.0f);
    for (int g = 0; g < kGroups; ++g) {
      trial.scales[g] = round_to_levels(fits[g].scale, per_scale, whole);
      trial.minima[g] = round_to_levels(-fits[g].offset, per_minimum, whole);
      error += error_of_pair<kSize>(block.from(g * kSize), trial.scale_factor * trial.scales[g],
                                    trial.minimum_factor * trial.minima[g], levels);
    }
    const IntLanes better = error < best;
    best = better ? error : best;
    nested.scale_factor = better ? trial.scale_factor : nested.scale_factor;
    nested.minimum_factor = better ? trial.minimum_factor : nested.minimum_factor;
    for (int g = 0; g < kGroups; ++g) {
      nested.scales[g] = better ? trial.scales[g] : nested.scales[g];
      nested.minima[g] = better ? trial.minima[g] : nested.minima[g];
    }
  }
  return nested;
}

// Puts the neighbouring pair of least error in the place of group g's.
template <int kSize, int kGroups, bool kWeighted>
void improve_pair(Group<kWeighted> group, int g, Range levels, Range whole,
                  NestedAffine<kGroups>* nested) {
  Lanes best = splat(kLargest), scale = splat(0.0f), minimum = splat(0.0f);
  for (float scale_step : kSteps) {
    const Lanes near_scale = clip(nested->scales[g] + scale_step, whole);
    for (float minimum_step : kSteps) {
      const Lanes near_minimum = clip(nested->minima[g] + minimum_step, whole);
      const Lanes error = error_of_pair<kSize>(group, nested->scale_factor * near_scale,
                                               nested->minimum_factor * near_minimum, levels);
      const IntLanes better = error < best;
      scale = better ? near_scale : scale;
      minimum = better ? near_minimum : minimum;
      best = better ? error : best;
    }
  }
  nested->scales[g] = scale;
  nested->minima[g] = minimum;
}

// Sums over a block of importance times two of: a, the level times its group's scale; b, the
// group's minimum; x, the weight.
struct Moments {
  Lanes aa, ab, bb, ax, bx;
};

template <int kSize, int kGroups, bool kWeighted>
void add_moments(Group<kWeighted> group, int g, Range levels, const NestedAffine<kGroups>& nested,
                 Moments* sums) {
  const Lanes a = nested.scales[g], b = nested.minima[g];
  const Lanes inverse = inverse_of(nested.scale_factor * a), minimum = nested.minimum_factor * b;
  Lanes one = splat(0.0f), q = splat(0.0f), qq = splat(0.0f), x = splat(0.0f), xq = splat(0.0f);
  for (int i = 0; i < kSize; ++i) {
    const Lanes level = round_to_levels(group.x[i] + minimum, inverse, levels);
    const Lanes share = group.share(i) * level;
    one += group.share(i);
    x += group.share(i) * group.x[i];
    q += share;
    qq += share * level;
    xq += share * group.x[i];
  }
  sums->aa += a * a * qq;
  sums->ab += a * b * q;
  sums->bb += b * b * one;
  sums->ax += a * xq;
  sums->bx += b * x;
}

// The best two factors with integers and levels held, where they are determined.
template <int kGroups>
void solve_factors(const Moments& m, NestedAffine<kGroups>* nested) {
  const Lanes determinant = m.aa * m.bb - m.ab * m.ab;
  const IntLanes open = determinant <= 1e-6f * m.aa * m.bb;
  const Lanes scale = divide(open ? m.ax : m.bb * m.ax - m.ab * m.bx, open ? m.aa : determinant);
  const Lanes minimum = open ? splat(0.0f) : divide(m.ab * m.ax - m.aa * m.bx, determinant);
  const Lanes solved_scale = to_float16(scale), solved_minimum = to_float16(minimum);
  const IntLanes usable =
      (solved_scale > 0.0f) & (solved_minimum >= 0.0f) & ~(open & (m.bb > 0.0f));
  nested->scale_factor = usable ? solved_scale : nested->scale_factor;
  nested->minimum_factor = usable ? solved_minimum : nested->minimum_factor;
}

template <int kGroups, int kSize, bool kWeighted>
NestedAffine<kGroups> nest_affine(Group<kWeighted> block, const Affine* fits, Range levels,
                                  Range whole, List<Pair> starts, int rounds) {
  auto nested = start_pairs<kGroups, kSize>(block, fits, levels, whole, starts);
  for (int round = 0; round < rounds; ++round) {
    Moments sums = {};
    for (int g = 0; g < kGroups; ++g) {
      const Group<kWeighted> group = block.from(g * kSize);
      improve_pair<kSize>(group, g, levels, whole, &nested);
      add_moments<kSize>(group, g, levels, nested, &sums);
    }
    solve_factors(sums, &nested);
  }
  return nested;
}

}  // namespace ivl::IVL_VARIANT::quant
