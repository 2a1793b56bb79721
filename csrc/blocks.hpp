// The small integers by which K-quants and IQ4_XS scale their groups, read out of a block of a file
// (docstrings in src/ivl/quant/ have the bytes), for those who decode blocks and those who pack them.
#pragma once

#include <cstdint>

namespace ivl {

struct ScaleAndMin {
  int scale, min;
};

// Of group g, below 8, of Q4_K and Q5_K, from their 12 bytes.
static inline ScaleAndMin scale_and_min_of(const uint8_t* packed, int g) {
  const uint8_t *scales = packed, *mins = packed + 4, *rest = packed + 8;
  if (g < 4) return {scales[g] & 63, mins[g] & 63};
  const int k = g - 4;
  return {(rest[k] & 15) | scales[k] >> 6 << 4, rest[k] >> 4 | mins[k] >> 6 << 4};
}

// Of group g, below 16, of Q3_K, from its 12 bytes.
static inline int q3_scale(const uint8_t* packed, int g) {
  const int low = packed[g % 8] >> (g < 8 ? 0 : 4) & 15;
  const int top = packed[8 + g % 4] >> (g / 4 * 2) & 3;
  return (low | top << 4) - 32;
}

// Of group g, below 8, of a block of IQ4_XS.
static inline int iq4_xs_scale(const uint8_t* block, int g) {
  const int low = block[4 + g / 2] >> (4 * (g % 2)) & 15;
  const int top = block[2 + g / 4] >> (2 * (g % 4)) & 3;
  return (low | top << 4) - 32;
}

}  // namespace ivl
