// From packed panels to what the kernels multiply with: levels as bytes, scales as float32.
#pragma once

#include "layout.hpp"
#include "simd.hpp"

namespace ivl {
namespace IVL_VARIANT {

// What the kernels must know of a format; several formats are alike in it.
struct Kind {
  int limit;    // levels, as they are multiplied, are below it: 16, 32, 64 or 256
  int halves;   // 2 where groups of 16 columns have scales of their own, else 1
  bool offset;  // an integer is taken from every level
  bool min;     // a number is added that depends on row and group
};

static constexpr Kind kind_of(const Layout& layout) {
  const bool halves =
      layout.scaling == Scaling::nested_16 || layout.scaling == Scaling::nested_min_16;
  const int limit = layout.table || layout.bits == 8 ? 256 : layout.bits == 4 ? 16
                  : layout.bits == 5                 ? 32
                                                     : 64;
  const bool min = layout.scaling == Scaling::plain_min || layout.scaling == Scaling::zero_point ||
                   layout.scaling == Scaling::nested_min_8 ||
                   layout.scaling == Scaling::nested_min_16;
  return {limit, halves ? 2 : 1, layout.offset != 0, min};
}

// The 8 vectors of levels of one group.
template <int BITS, bool TABLE>
IVL_INLINE void load_levels(const uint8_t* planes, Bytes* w) {
  if constexpr (BITS == 8) {
    for (int v = 0; v < 8; ++v) w[v] = load_bytes(planes + 64 * v);
  }
  if constexpr (BITS == 4 || BITS == 5 || BITS == 6) {
    for (int v = 0; v < 4; ++v) {
      const Bytes both = load_bytes(planes + 64 * v);
      w[v] = pick<0, 4, 0>(both);
      w[v + 4] = pick<4, 4, 0>(both);
    }
    if constexpr (TABLE) {
      for (int v = 0; v < 8; ++v) w[v] = lookup(kIq4Levels, w[v]);
    }
  }
  constexpr int low = BITS >= 4 ? 4 : 0;
  if constexpr (BITS == 2 || BITS == 3) {
    for (int h = 0; h < 2; ++h) {
      const Bytes four = load_bytes(planes + 64 * h);
      w[4 * h] = pick<0, 2, 0>(four);
      w[4 * h + 1] = pick<2, 2, 0>(four);
      w[4 * h + 2] = pick<4, 2, 0>(four);
      w[4 * h + 3] = pick<6, 2, 0>(four);
    }
  }
  if constexpr (BITS == 6) {
    for (int h = 0; h < 2; ++h) {
      const Bytes four = load_bytes(planes + 256 + 64 * h);
      w[4 * h] = pick_or<0, 2, low>(w[4 * h], four);
      w[4 * h + 1] = pick_or<2, 2, low>(w[4 * h + 1], four);
      w[4 * h + 2] = pick_or<4, 2, low>(w[4 * h + 2], four);
      w[4 * h + 3] = pick_or<6, 2, low>(w[4 * h + 3], four);
    }
  }
  if constexpr (BITS == 3 || BITS == 5) {
    constexpr int top = BITS - 1;
    const Bytes eight = load_bytes(planes + (BITS == 5 ? 256 : 128));
    w[0] = pick_or<0, 1, top>(w[0], eight);
    w[1] = pick_or<1, 1, top>(w[1], eight);
    w[2] = pick_or<2, 1, top>(w[2], eight);
    w[3] = pick_or<3, 1, top>(w[3], eight);
    w[4] = pick_or<4, 1, top>(w[4], eight);
    w[5] = pick_or<5, 1, top>(w[5], eight);
    w[6] = pick_or<6, 1, top>(w[6], eight);
    w[7] = pick_or<7, 1, top>(w[7], eight);
  }
}

// The scales of one group, for each half that has its own.
struct GroupScales {
  Floats scale[2], base[2], min[2];
};

// Scales of the groups of one block: first what they share, then one group after the other.
template <Scaling SCALING>
struct ScaleReader {
  const uint8_t* place;
  Floats d, second;

  IVL_INLINE ScaleReader at(const uint8_t* block) {
    ScaleReader reader;
    reader.place = block;
    reader.d = from_float16(block);
    reader.second = reader.d;
    constexpr bool min = SCALING == Scaling::plain_min || SCALING == Scaling::nested_min_8 ||
                         SCALING == Scaling::nested_min_16;
    if constexpr (min) reader.second = from_float16(block + 32);
    if constexpr (SCALING == Scaling::nested_min_8 || SCALING == Scaling::nested_min_16) {
      reader.second = multiply(reader.second, splat(-1.0f));
    }
    if constexpr (SCALING == Scaling::zero_point) {
      reader.second = multiply(multiply(reader.d, from_uint8(block + 32)), splat(-1.0f));
    }
    return reader;
  }

  inline __attribute__((always_inline)) void group(int64_t g, GroupScales& out) const {
    if constexpr (SCALING == Scaling::plain) {
      out.scale[0] = d;
    } else if constexpr (SCALING == Scaling::plain_min || SCALING == Scaling::zero_point) {
      out.scale[0] = d;
      out.min[0] = second;
    } else if constexpr (SCALING == Scaling::nested_8) {
      out.scale[0] = multiply(d, from_int8(place + 32 + 16 * g));
    } else if constexpr (SCALING == Scaling::nested_16) {
      out.scale[0] = multiply(d, from_int8(place + 32 + 32 * g));
      out.scale[1] = multiply(d, from_int8(place + 48 + 32 * g));
    } else if constexpr (SCALING == Scaling::nested_min_8) {
      out.scale[0] = multiply(d, from_uint8(place + 64 + 32 * g));
      out.min[0] = multiply(second, from_uint8(place + 80 + 32 * g));
    } else {
      const Bytes both = load_bytes(place + 64 + 32 * g);
      alignas(64) uint8_t low[64], high[64];
      store_bytes(low, pick<0, 4, 0>(both));
      store_bytes(high, pick<4, 4, 0>(both));
      out.scale[0] = multiply(d, from_uint8(low));
      out.scale[1] = multiply(d, from_uint8(low + 16));
      out.min[0] = multiply(second, from_uint8(high));
      out.min[1] = multiply(second, from_uint8(high + 16));
    }
    constexpr int halves =
        SCALING == Scaling::nested_16 || SCALING == Scaling::nested_min_16 ? 2 : 1;
    for (int h = 0; h < halves; ++h) out.base[h] = multiply(out.scale[h], splat(kFloatBase));
  }
};

}  // namespace IVL_VARIANT
}  // namespace ivl
