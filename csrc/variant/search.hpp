// How the scale (and minimum) of one group of weights is chosen: `fit_scale` and `fit_affine` of
// src/ivl/quant/search.py, which explains the plan, with one block in each lane of a vector. Names
// are the same there and here.
#pragma once

#include "variant/lanes.hpp"

namespace ivl::IVL_VARIANT::quant {

constexpr int kRefinements = 2;
// Candidates that are tried side by side: their sums do not wait for each other.
constexpr int kAtOnce = 2;
constexpr float kLargest = 3.402823466e38f;

// Neighbouring weights of each block, x[i] weight i of all blocks, and how much an error in each
// of them counts.
template <bool kWeighted>
struct Group {
  const Lanes* x;
  const Lanes* importance;

  Lanes share(int i) const { return kWeighted ? importance[i] : splat(1.0f); }
  Group from(int first) const { return {x + first, kWeighted ? importance + first : nullptr}; }
};

// A constant table.
template <typename T>
struct List {
  const T* first;
  int size;
  const T* begin() const { return first; }
  const T* end() const { return first + size; }
};

struct Range {
  float low, high;
};

// Two numbers of a candidate: what is cut off below and above, or what scale and minimum map to.
struct Pair {
  float first, second;
};

// The quotient, and 0 where it is not finite.
inline Lanes divide(Lanes numerator, Lanes denominator) {
  const Lanes quotient = numerator / denominator;
  return magnitude(quotient) <= kLargest ? quotient : splat(0.0f);
}

inline Lanes inverse_of(Lanes value) { return divide(splat(1.0f), value); }

// value * inverse, rounded to the nearest integer of a range. Next to 1.5 * 2^23 neighbouring
// float32 numbers are one apart, so the addition rounds.
inline Lanes round_to_levels(Lanes value, Lanes inverse, Range range) {
  constexpr float kRounds = 12582912.0f;
  const Lanes shifted = value * inverse + kRounds;
  return smaller(larger(shifted, splat(kRounds + range.low)), splat(kRounds + range.high)) -
         kRounds;
}

inline Lanes clip(Lanes value, Range range) {
  return smaller(larger(value, splat(range.low)), splat(range.high));
}

// Sums over a group: importance * level * weight, importance * level^2.
struct ScaleSums {
  Lanes projection, power;
};

template <int kSize, int kCandidates, bool kWeighted>
inline void scale_sums(Group<kWeighted> group, const Lanes* inverse, Range levels,
                       ScaleSums* sums) {
  for (int c = 0; c < kCandidates; ++c) sums[c] = {splat(0.0f), splat(0.0f)};
  for (int i = 0; i < kSize; ++i) {
    const Lanes x = group.x[i];
    for (int c = 0; c < kCandidates; ++c) {
      const Lanes level = round_to_levels(x, inverse[c], levels);
      const Lanes share = group.share(i) * level;
      sums[c].projection += share * x;
      sums[c].power += share * level;
    }
  }
}

template <int kSize, bool kWeighted>
inline ScaleSums scale_sums(Group<kWeighted> group, Lanes inverse, Range levels) {
  ScaleSums sums;
  scale_sums<kSize, 1>(group, &inverse, levels, &sums);
  return sums;
}

template <int kSize, bool kWeighted>
Lanes fit_scale(Group<kWeighted> group, Range levels, List<float> targets) {
  Lanes peak = group.x[0];
  for (int i = 1; i < kSize; ++i)
    peak = magnitude(group.x[i]) > magnitude(peak) ? group.x[i] : peak;
  const Lanes per_peak = inverse_of(peak);
  Lanes best = splat(-1.0f), scale = splat(0.0f);
  for (int first = 0; first < targets.size; first += kAtOnce) {
    Lanes inverse[kAtOnce];
    ScaleSums sums[kAtOnce];
    for (int c = 0; c < kAtOnce; ++c) {
      const int last = targets.size - 1, t = first + c < last ? first + c : last;
      inverse[c] = targets.first[t] * per_peak;
    }
    scale_sums<kSize, kAtOnce>(group, inverse, levels, sums);
    for (const ScaleSums& sum : sums) {
      const Lanes found = divide(sum.projection, sum.power), gain = found * sum.projection;
      scale = gain > best ? found : scale;
      best = larger(gain, best);
    }
  }
  for (int round = 0; round < kRefinements; ++round) {
    const ScaleSums sums = scale_sums<kSize>(group, inverse_of(scale), levels);
    scale = sums.power > 0.0f ? divide(sums.projection, sums.power) : scale;
  }
  return scale;
}

struct Affine {
  Lanes scale, offset;
};

// What all candidates of a group have in common: the sums of importance and importance * weight.
struct AffineTotals {
  Lanes one, x;
};

template <int kSize, bool kSigned, bool kWeighted>
inline Affine solve_affine(Group<kWeighted> group, AffineTotals totals, Affine start, Range levels,
                           Lanes* error) {
  const Lanes inverse = inverse_of(start.scale);
  Lanes q = splat(0.0f), qq = splat(0.0f), xq = splat(0.0f);
  for (int i = 0; i < kSize; ++i) {
    const Lanes level = round_to_levels(group.x[i] - start.offset, inverse, levels);
    const Lanes share = group.share(i) * level;
    q += share;
    qq += share * level;
    xq += share * group.x[i];
  }
  const Lanes one = totals.one, x = totals.x;
  const Lanes determinant = one * qq - q * q;
  // Levels that are all the same leave the scale open: the offset alone then.
  const IntLanes flat = determinant <= 1e-6f * one * qq;
  Affine found;
  found.scale = flat ? splat(0.0f) : divide(one * xq - q * x, determinant);
  found.offset = divide(flat ? x : qq * x - q * xq, flat ? one : determinant);
  if (!kSigned) {
    const IntLanes above = found.offset > 0.0f;
    found.scale = above ? divide(xq, qq) : found.scale;
    found.offset = above ? splat(0.0f) : found.offset;
  }
  *error = -(found.scale * xq + found.offset * x);
  return found;
}

template <int kSize, bool kSigned, bool kWeighted>
Affine fit_affine(Group<kWeighted> group, Range levels, List<Pair> cuts) {
  Lanes least = group.x[0], most = group.x[0];
  AffineTotals totals = {splat(0.0f), splat(0.0f)};
  for (int i = 0; i < kSize; ++i) {
    least = smaller(group.x[i], least);
    most = larger(group.x[i], most);
    totals.one += group.share(i);
    totals.x += group.share(i) * group.x[i];
  }
  if (!kSigned) {
    least = smaller(least, splat(0.0f));
    most = larger(most, splat(0.0f));
  }
  const Lanes span = most - least;
  Lanes best = splat(kLargest), error;
  Affine chosen = {splat(0.0f), least};
  for (const Pair& cut : cuts) {
    const float step = (1.0f - cut.first - cut.second) / levels.high;
    const Affine start = {span * step, least + cut.first * span};
    const Affine found = solve_affine<kSize, kSigned>(group, totals, start, levels, &error);
    const IntLanes better = error < best;
    chosen.scale = better ? found.scale : chosen.scale;
    chosen.offset = better ? found.offset : chosen.offset;
    best = better ? error : best;
  }
  for (int round = 0; round < kRefinements; ++round)
    chosen = solve_affine<kSize, kSigned>(group, totals, chosen, levels, &error);
  return chosen;
}

}  // namespace ivl::IVL_VARIANT::quant
