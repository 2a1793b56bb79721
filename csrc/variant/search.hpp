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
  // The last one again beyond the end.
  const T& at(int i) const { return first[i < size ? i : size - 1]; }
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
    for (int c = 0; c < kAtOnce; ++c) inverse[c] = targets.at(first + c) * per_peak;
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

// Scale and offset from the sums over importance * level, * level^2 and * level * weight.
template <bool kSigned>
inline Affine least_squares(AffineTotals totals, Lanes q, Lanes qq, Lanes xq, Lanes* error) {
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

// Of kCandidates starts: levels from the start, then the best scale and offset with these, and
// the error less the weights' own power.
template <int kSize, bool kSigned, int kCandidates, bool kWeighted>
inline void solve_affine(Group<kWeighted> group, AffineTotals totals, const Affine* starts,
                         Range levels, Affine* found, Lanes* errors) {
  Lanes inverse[kCandidates], q[kCandidates], qq[kCandidates], xq[kCandidates];
  for (int c = 0; c < kCandidates; ++c) {
    inverse[c] = inverse_of(starts[c].scale);
    q[c] = qq[c] = xq[c] = splat(0.0f);
  }
  for (int i = 0; i < kSize; ++i) {
    const Lanes x = group.x[i];
    for (int c = 0; c < kCandidates; ++c) {
      const Lanes level = round_to_levels(x - starts[c].offset, inverse[c], levels);
      const Lanes share = group.share(i) * level;
      q[c] += share;
      qq[c] += share * level;
      xq[c] += share * x;
    }
  }
  for (int c = 0; c < kCandidates; ++c)
    found[c] = least_squares<kSigned>(totals, q[c], qq[c], xq[c], &errors[c]);
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
  Lanes best = splat(kLargest), errors[kAtOnce];
  Affine chosen = {splat(0.0f), least};
  for (int first = 0; first < cuts.size; first += kAtOnce) {
    Affine starts[kAtOnce], found[kAtOnce];
    for (int c = 0; c < kAtOnce; ++c) {
      const Pair cut = cuts.at(first + c);
      starts[c].scale = span * ((1.0f - cut.first - cut.second) / levels.high);
      starts[c].offset = least + cut.first * span;
    }
    solve_affine<kSize, kSigned, kAtOnce>(group, totals, starts, levels, found, errors);
    for (int c = 0; c < kAtOnce; ++c) {
      const IntLanes better = errors[c] < best;
      chosen.scale = better ? found[c].scale : chosen.scale;
      chosen.offset = better ? found[c].offset : chosen.offset;
      best = better ? errors[c] : best;
    }
  }
  for (int round = 0; round < kRefinements; ++round) {
    const Affine start = chosen;
    solve_affine<kSize, kSigned, 1>(group, totals, &start, levels, &chosen, errors);
  }
  return chosen;
}

}  // namespace ivl::IVL_VARIANT::quant
