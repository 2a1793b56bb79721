// Encoding of blocks: each format is a struct that finds scales and levels of kLanes blocks at once
// and lays them out as its docstring in src/ivl/quant/ says. Byte k of a block is element k of
// `out`, one block a lane, in the lower eight bits.
#pragma once

#include "variant/nested_search.hpp"

namespace ivl::IVL_VARIANT::quant {

template <typename T, int kSize>
struct Table {
  T values[kSize];
  constexpr List<T> list() const { return {values, kSize}; }
};

// Targets for `fit_scale`: from -first up in steps, then from second down.
template <int kFirst, int kSecond>
constexpr Table<float, kFirst + kSecond> two_runs(float first, float second, float step) {
  Table<float, kFirst + kSecond> table = {};
  for (int i = 0; i < kFirst; ++i) table.values[i] = -(first - i * step);
  for (int i = 0; i < kSecond; ++i) table.values[kFirst + i] = second - i * step;
  return table;
}

// Every value with every other.
template <int kSize>
constexpr Table<Pair, kSize * kSize> crossed(const float (&values)[kSize]) {
  Table<Pair, kSize * kSize> table = {};
  for (int i = 0; i < kSize * kSize; ++i)
    table.values[i] = {values[i / kSize], values[i % kSize]};
  return table;
}

template <int kSize>
constexpr Table<Pair, kSize + 1> and_one(const Table<Pair, kSize>& others, Pair one) {
  Table<Pair, kSize + 1> table = {};
  for (int i = 0; i < kSize; ++i) table.values[i] = others.values[i];
  table.values[kSize] = one;
  return table;
}

constexpr auto kCuts2 = crossed({-0.05f, 0.05f, 0.12f, 0.2f});
constexpr auto kCuts4 = crossed({-0.02f, 0.0f, 0.03f, 0.07f});
// Blocks of one scale are simple enough that a search is most of their time: fewer candidates, which
// costs 0.1 to 1.1 % in error, keep it as quick as a single pass. What lies on levels already, with
// nothing cut off, is among them.
constexpr auto kPlainCuts4 = crossed({0.0f, 0.03f, 0.07f});
constexpr auto kPlainCuts5 = crossed({0.0f, 0.012f, 0.03f});
constexpr auto kCuts5 = crossed({-0.01f, 0.0f, 0.015f, 0.03f});

inline void put_float16(IntLanes bits, IntLanes* out) {
  out[0] = bits & 0xff;
  out[1] = bits >> 8;
}

// 16 bytes of 32 levels: low halves are weights 0-15, high halves 16-31.
inline void put_nibbles(const IntLanes* q, IntLanes* out) {
  for (int j = 0; j < 16; ++j) out[j] = (q[j] & 15) | (q[j + 16] & 15) << 4;
}

// 32 bytes: bits [low, low + bits) of q[32 * p + k] at bit p * bits of byte k.
inline void put_planes(const IntLanes* q, int low, int bits, IntLanes* out) {
  const int mask = (1 << bits) - 1;
  for (int k = 0; k < 32; ++k) {
    out[k] = (q[k] >> low) & mask;
    for (int p = 1; p < 8 / bits; ++p) out[k] |= ((q[32 * p + k] >> low) & mask) << (p * bits);
  }
}

// Four bytes: bit j of the 32-bit word is bit 4 of q[j].
inline void put_fifth_bits(const IntLanes* q, IntLanes* out) {
  for (int k = 0; k < 4; ++k) {
    out[k] = IntLanes{};
    for (int bit = 0; bit < 8; ++bit) out[k] |= ((q[8 * k + bit] >> 4) & 1) << bit;
  }
}

constexpr int kPlain = 32, kNested = 256;

// d and levels - low of 32 weights without a minimum.
template <bool kWeighted>
inline void symmetric(Group<kWeighted> block, Range levels, List<float> targets, IntLanes* d,
                      IntLanes* q) {
  *d = float16_bits(fit_scale<kPlain>(block, levels, targets));
  const Lanes inverse = inverse_of(float_of_float16<Lanes>(*d));
  for (int i = 0; i < kPlain; ++i)
    q[i] = to_int(round_to_levels(block.x[i], inverse, levels) - levels.low);
}

// d, m and levels of 32 weights with a minimum; d and m are put into out[0] to out[3].
template <bool kWeighted>
inline void affine(Group<kWeighted> block, float high, List<Pair> cuts, IntLanes* q,
                   IntLanes* out) {
  const Range levels = {0, high};
  const Affine fit = fit_affine<kPlain, true>(block, levels, cuts);
  const IntLanes d = float16_bits(fit.scale), m = float16_bits(fit.offset);
  const Lanes inverse = inverse_of(float_of_float16<Lanes>(d)), offset = float_of_float16<Lanes>(m);
  for (int i = 0; i < kPlain; ++i)
    q[i] = to_int(round_to_levels(block.x[i] - offset, inverse, levels));
  put_float16(d, out);
  put_float16(m, out + 2);
}

struct Q8_0 {
  static constexpr int size = kPlain, bytes = 34;
  static constexpr auto targets =
      Table<float, 7>{{127.0f, 126.5f, 126.0f, 125.5f, 125.0f, 124.5f, 127.4f}};
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    IntLanes d, q[size];
    symmetric(block, {-127, 127}, targets.list(), &d, q);
    put_float16(d, out);
    for (int i = 0; i < size; ++i) out[2 + i] = (q[i] - 127) & 0xff;
  }
};

struct Q4_0 {
  static constexpr int size = kPlain, bytes = 18;
  static constexpr auto targets = two_runs<7, 7>(10.0f, 9.0f, 2.0f / 3);
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    IntLanes d, q[size];
    symmetric(block, {-8, 7}, targets.list(), &d, q);
    put_float16(d, out);
    put_nibbles(q, out + 2);
  }
};

struct Q5_0 {
  static constexpr int size = kPlain, bytes = 22;
  static constexpr auto targets = two_runs<9, 9>(18.4f, 17.4f, 0.6f);
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    IntLanes d, q[size];
    symmetric(block, {-16, 15}, targets.list(), &d, q);
    put_float16(d, out);
    put_fifth_bits(q, out + 2);
    put_nibbles(q, out + 6);
  }
};

struct Q4_1 {
  static constexpr int size = kPlain, bytes = 20;
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    IntLanes q[size];
    affine(block, 15, kPlainCuts4.list(), q, out);
    put_nibbles(q, out + 4);
  }
};

struct Q5_1 {
  static constexpr int size = kPlain, bytes = 24;
  static constexpr auto cuts = and_one(kPlainCuts5, {0.0f, -1.0f / 30.0f});
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    IntLanes q[size];
    affine(block, 31, cuts.list(), q, out);
    put_fifth_bits(q, out + 4);
    put_nibbles(q, out + 8);
  }
};

// d, scales and levels - low of 16 groups of 16.
template <bool kWeighted>
inline void nested(Group<kWeighted> block, Range levels, Range whole, List<float> targets,
                   List<float> starts, int rounds, IntLanes* d, IntLanes* s, IntLanes* q) {
  Lanes scales[16];
  for (int g = 0; g < 16; ++g) scales[g] = fit_scale<16>(block.from(16 * g), levels, targets);
  const auto found = nest_scales<16, 16>(block, scales, levels, whole, starts, rounds);
  *d = float16_bits(found.factor);
  for (int g = 0; g < 16; ++g) {
    s[g] = to_int(found.integers[g]);
    const Lanes inverse = inverse_of(found.factor * found.integers[g]);
    for (int i = 16 * g; i < 16 * g + 16; ++i)
      q[i] = to_int(round_to_levels(block.x[i], inverse, levels) - levels.low);
  }
}

struct Q3_K {
  static constexpr int size = kNested, bytes = 110;
  static constexpr auto targets = two_runs<20, 15>(6.0f, 5.0f, 0.2f);
  static constexpr auto starts = Table<float, 4>{{-32.0f, -30.0f, -28.5f, 31.0f}};
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    IntLanes d, s[16], q[size];
    nested(block, {-4, 3}, {-32, 31}, targets.list(), starts.list(), 3, &d, s, q);
    for (IntLanes& scale : s) scale += 32;
    put_planes(q, 2, 1, out);
    for (int p = 0; p < 2; ++p) put_planes(q + 128 * p, 0, 2, out + 32 + 32 * p);
    for (int k = 0; k < 8; ++k) out[96 + k] = (s[k] & 15) | (s[k + 8] & 15) << 4;
    for (int k = 0; k < 4; ++k)
      out[104 + k] = s[k] >> 4 | s[k + 4] >> 4 << 2 | s[k + 8] >> 4 << 4 | s[k + 12] >> 4 << 6;
    put_float16(d, out + 108);
  }
};

struct Q6_K {
  static constexpr int size = kNested, bytes = 210;
  static constexpr auto targets = two_runs<13, 11>(33.0f, 32.0f, 0.5f);
  static constexpr auto starts = Table<float, 3>{{-128.0f, -125.0f, 127.0f}};
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    IntLanes d, s[16], q[size];
    nested(block, {-32, 31}, {-128, 127}, targets.list(), starts.list(), 2, &d, s, q);
    for (int h = 0; h < 2; ++h) {
      const IntLanes* half = q + 128 * h;
      for (int k = 0; k < 64; ++k)
        out[64 * h + k] = (half[k] & 15) | (half[64 + k] & 15) << 4;
      put_planes(half, 4, 2, out + 128 + 32 * h);
    }
    for (int g = 0; g < 16; ++g) out[192 + g] = s[g] & 0xff;
    put_float16(d, out + 208);
  }
};

// Factors, scales, minima and levels of kGroups groups.
template <int kGroups>
struct Affines {
  IntLanes d, dmin, s[kGroups], m[kGroups], q[kNested];
};

template <int kGroups, bool kWeighted>
inline Affines<kGroups> nested_affine(Group<kWeighted> block, float high, float whole_high,
                                      List<Pair> cuts, List<Pair> starts, int rounds) {
  constexpr int kSize = kNested / kGroups;
  const Range levels = {0, high};
  Affine fits[kGroups];
  for (int g = 0; g < kGroups; ++g)
    fits[g] = fit_affine<kSize, false>(block.from(g * kSize), levels, cuts);
  const auto found =
      nest_affine<kGroups, kSize>(block, fits, levels, {0, whole_high}, starts, rounds);
  Affines<kGroups> stored;
  stored.d = float16_bits(found.scale_factor);
  stored.dmin = float16_bits(found.minimum_factor);
  for (int g = 0; g < kGroups; ++g) {
    stored.s[g] = to_int(found.scales[g]);
    stored.m[g] = to_int(found.minima[g]);
    const Lanes inverse = inverse_of(found.scale_factor * found.scales[g]);
    const Lanes minimum = found.minimum_factor * found.minima[g];
    for (int i = g * kSize; i < (g + 1) * kSize; ++i)
      stored.q[i] = to_int(round_to_levels(block.x[i] + minimum, inverse, levels));
  }
  return stored;
}

struct Q2_K {
  static constexpr int size = kNested, bytes = 84;
  static constexpr auto starts = crossed({15.0f, 14.0f, 13.0f});
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    const auto found = nested_affine<16>(block, 3, 15, kCuts2.list(), starts.list(), 4);
    for (int g = 0; g < 16; ++g) out[g] = found.s[g] | found.m[g] << 4;
    for (int p = 0; p < 2; ++p) put_planes(found.q + 128 * p, 0, 2, out + 16 + 32 * p);
    put_float16(found.d, out + 80);
    put_float16(found.dmin, out + 82);
  }
};

constexpr auto kStartsOf63 = Table<Pair, 2>{{{63.0f, 63.0f}, {61.0f, 61.0f}}};

// The first 16 bytes of Q4_K and Q5_K: both factors, scales and minima of 6 bits.
inline void put_pairs(const Affines<8>& found, IntLanes* out) {
  const IntLanes *s = found.s, *m = found.m;
  put_float16(found.d, out);
  put_float16(found.dmin, out + 2);
  for (int k = 0; k < 4; ++k) {
    out[4 + k] = s[k] | s[k + 4] >> 4 << 6;
    out[8 + k] = m[k] | m[k + 4] >> 4 << 6;
    out[12 + k] = (s[k + 4] & 15) | (m[k + 4] & 15) << 4;
  }
}

struct Q4_K {
  static constexpr int size = kNested, bytes = 144;
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    const auto found = nested_affine<8>(block, 15, 63, kCuts4.list(), kStartsOf63.list(), 2);
    put_pairs(found, out);
    for (int p = 0; p < 4; ++p) put_planes(found.q + 64 * p, 0, 4, out + 16 + 32 * p);
  }
};

struct Q5_K {
  static constexpr int size = kNested, bytes = 176;
  template <bool kWeighted>
  static void encode(Group<kWeighted> block, IntLanes* out) {
    const auto found = nested_affine<8>(block, 31, 63, kCuts5.list(), kStartsOf63.list(), 2);
    put_pairs(found, out);
    put_planes(found.q, 4, 1, out + 16);
    for (int p = 0; p < 4; ++p) put_planes(found.q + 64 * p, 0, 4, out + 48 + 32 * p);
  }
};

}  // namespace ivl::IVL_VARIANT::quant
