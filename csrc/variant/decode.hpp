// Decoding of blocks, bit for bit as the NumPy reference in src/ivl/quant/, whose docstrings are the
// layouts. Products of a scale and a level are exact in float32, so that each weight is rounded
// once at most, whether or not the compiler fuses a product with the addition of the minimum.
#pragma once

#include <cstdint>

#include "blocks.hpp"
#include "float16.hpp"
#include "variant/layout.hpp"

namespace ivl::IVL_VARIANT::quant {

struct ReadQ8_0 {
  static constexpr int size = 32, bytes = 34;
  static void decode(const uint8_t* b, float* w) {
    const float d = float16_at(b);
    for (int j = 0; j < 32; ++j) w[j] = d * static_cast<float>(static_cast<int8_t>(b[2 + j]));
  }
};

// Levels 0-15 from the low halves of 16 bytes, 16-31 from the high halves.
inline void nibbles(const uint8_t* b, int32_t* q) {
  for (int j = 0; j < 16; ++j) {
    q[j] = b[j] & 15;
    q[j + 16] = b[j] >> 4;
  }
}

inline void fifth_bits(const uint8_t* b, int32_t* q) {
  const uint32_t word = b[0] | b[1] << 8 | b[2] << 16 | static_cast<uint32_t>(b[3]) << 24;
  for (int j = 0; j < 32; ++j) q[j] |= (word >> j & 1) << 4;
}

inline void scaled(float d, int32_t low, float m, const int32_t* q, float* w) {
  for (int j = 0; j < 32; ++j) w[j] = d * static_cast<float>(q[j] - low) + m;
}

inline void scaled(float d, int32_t low, const int32_t* q, float* w) {
  for (int j = 0; j < 32; ++j) w[j] = d * static_cast<float>(q[j] - low);
}

struct ReadQ4_0 {
  static constexpr int size = 32, bytes = 18;
  static void decode(const uint8_t* b, float* w) {
    int32_t q[32];
    nibbles(b + 2, q);
    scaled(float16_at(b), 8, q, w);
  }
};

struct ReadQ4_1 {
  static constexpr int size = 32, bytes = 20;
  static void decode(const uint8_t* b, float* w) {
    int32_t q[32];
    nibbles(b + 4, q);
    scaled(float16_at(b), 0, float16_at(b + 2), q, w);
  }
};

struct ReadQ5_0 {
  static constexpr int size = 32, bytes = 22;
  static void decode(const uint8_t* b, float* w) {
    int32_t q[32];
    nibbles(b + 6, q);
    fifth_bits(b + 2, q);
    scaled(float16_at(b), 16, q, w);
  }
};

struct ReadQ5_1 {
  static constexpr int size = 32, bytes = 24;
  static void decode(const uint8_t* b, float* w) {
    int32_t q[32];
    nibbles(b + 8, q);
    fifth_bits(b + 4, q);
    scaled(float16_at(b), 0, float16_at(b + 2), q, w);
  }
};

struct ReadQ2_K {
  static constexpr int size = 256, bytes = 84;
  static void decode(const uint8_t* b, float* w) {
    const float d = float16_at(b + 80), dmin = float16_at(b + 82);
    for (int g = 0; g < 16; ++g) {
      const float step = d * static_cast<float>(b[g] & 15);
      const float offset = dmin * static_cast<float>(b[g] >> 4);
      const uint8_t* plane = b + 16 + 32 * (g / 8) + 16 * (g % 2);
      const int shift = 2 * (g / 2 % 4);
      for (int k = 0; k < 16; ++k)
        w[16 * g + k] = step * static_cast<float>(plane[k] >> shift & 3) - offset;
    }
  }
};

struct ReadQ3_K {
  static constexpr int size = 256, bytes = 110;
  static void decode(const uint8_t* b, float* w) {
    const float d = float16_at(b + 108);
    for (int g = 0; g < 16; ++g) {
      const float step = d * static_cast<float>(q3_scale(b + 96, g));
      const uint8_t *plane = b + 32 + 32 * (g / 8) + 16 * (g % 2), *tops = b + 16 * (g % 2);
      const int shift = 2 * (g / 2 % 4), bit = g / 2;
      for (int k = 0; k < 16; ++k) {
        const int q = (plane[k] >> shift & 3) | (tops[k] >> bit & 1) << 2;
        w[16 * g + k] = step * static_cast<float>(q - 4);
      }
    }
  }
};

struct ReadQ6_K {
  static constexpr int size = 256, bytes = 210;
  static void decode(const uint8_t* b, float* w) {
    const float d = float16_at(b + 208);
    for (int g = 0; g < 16; ++g) {
      const float step = d * static_cast<float>(static_cast<int8_t>(b[192 + g]));
      // Quarter c of a half: 32 weights.
      const int half = g / 8, c = g / 2 % 4, at = 16 * (g % 2);
      const uint8_t* low = b + 64 * half + 32 * (c % 2) + at;
      const uint8_t* top = b + 128 + 32 * half + at;
      const int low_shift = c < 2 ? 0 : 4, top_shift = 2 * c;
      for (int k = 0; k < 16; ++k) {
        const int q = (low[k] >> low_shift & 15) | (top[k] >> top_shift & 3) << 4;
        w[16 * g + k] = step * static_cast<float>(q - 32);
      }
    }
  }
};

struct StepAndOffset {
  float step, offset;
};

// Of group g of Q4_K and Q5_K.
inline StepAndOffset pair_of(const uint8_t* b, int g) {
  const ScaleAndMin pair = scale_and_min_of(b + 4, g);
  return {float16_at(b) * static_cast<float>(pair.scale),
          float16_at(b + 2) * static_cast<float>(pair.min)};
}

struct ReadQ4_K {
  static constexpr int size = 256, bytes = 144;
  static void decode(const uint8_t* b, float* w) {
    for (int g = 0; g < 8; ++g) {
      const StepAndOffset pair = pair_of(b, g);
      const uint8_t* plane = b + 16 + 32 * (g / 2);
      const int shift = 4 * (g % 2);
      for (int k = 0; k < 32; ++k)
        w[32 * g + k] = pair.step * static_cast<float>(plane[k] >> shift & 15) - pair.offset;
    }
  }
};

struct ReadQ5_K {
  static constexpr int size = 256, bytes = 176;
  static void decode(const uint8_t* b, float* w) {
    for (int g = 0; g < 8; ++g) {
      const StepAndOffset pair = pair_of(b, g);
      const uint8_t* plane = b + 48 + 32 * (g / 2);
      const int shift = 4 * (g % 2);
      for (int k = 0; k < 32; ++k) {
        const int q = (plane[k] >> shift & 15) | (b[16 + k] >> g & 1) << 4;
        w[32 * g + k] = pair.step * static_cast<float>(q) - pair.offset;
      }
    }
  }
};

inline void from_table(float step, const uint8_t* packed, float* w) {
  float values[16];
  for (int q = 0; q < 16; ++q) values[q] = step * static_cast<float>(kIq4Levels[q] - 128);
  for (int k = 0; k < 16; ++k) {
    w[k] = values[packed[k] & 15];
    w[k + 16] = values[packed[k] >> 4];
  }
}

struct ReadIQ4_NL {
  static constexpr int size = 32, bytes = 18;
  static void decode(const uint8_t* b, float* w) { from_table(float16_at(b), b + 2, w); }
};

struct ReadIQ4_XS {
  static constexpr int size = 256, bytes = 136;
  static void decode(const uint8_t* b, float* w) {
    for (int g = 0; g < 8; ++g) {
      const float step = float16_at(b) * static_cast<float>(iq4_xs_scale(b, g));
      from_table(step, b + 8 + 16 * g, w + 32 * g);
    }
  }
};

struct ReadF16 {
  static constexpr int size = 1, bytes = 2;
  static void decode(const uint8_t* b, float* w) { *w = float16_at(b); }
};

struct ReadBF16 {
  static constexpr int size = 1, bytes = 2;
  static void decode(const uint8_t* b, float* w) {
    *w = bits_as<float>(static_cast<uint32_t>(b[0] | b[1] << 8) << 16);
  }
};

}  // namespace ivl::IVL_VARIANT::quant
