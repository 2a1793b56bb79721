// Standard C++ and nothing else: what the other instruction sets must agree with, and what runs
// where none of them does. Compilers make vectors of these loops as far as they can.
#pragma once

#include <cmath>

#include "float16.hpp"

#define IVL_INLINE static inline

namespace ivl {
namespace IVL_VARIANT {

#define IVL_ROW_BLOCKS 1
constexpr int kFloatRows = 2;
constexpr int kFloatVectors = 1;

struct Bytes { uint8_t at[64]; };
struct Floats { float at[16]; };
struct Sum { int32_t at[16]; };

constexpr bool kSignedBytes = false;
constexpr int32_t kFloatBits = 0;
constexpr float kFloatBase = 0.0f;

IVL_INLINE Bytes load_bytes(const void* p) {
  Bytes x;
  memcpy(x.at, p, 64);
  return x;
}
IVL_INLINE void store_bytes(void* p, const Bytes& x) { memcpy(p, x.at, 64); }
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick(Bytes x) {
  for (uint8_t& byte : x.at) byte = static_cast<uint8_t>(((byte >> FROM) & ((1 << BITS) - 1)) << TO);
  return x;
}
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick_or(Bytes low, const Bytes& x) {
  const Bytes high = pick<FROM, BITS, TO>(x);
  for (int i = 0; i < 64; ++i) low.at[i] |= high.at[i];
  return low;
}
IVL_INLINE Bytes lookup(const uint8_t* table, Bytes x) {
  for (uint8_t& byte : x.at) byte = table[byte];
  return x;
}

IVL_INLINE Sum sum_from(int32_t start) {
  Sum sum;
  for (int32_t& lane : sum.at) lane = start;
  return sum;
}
template <int LIMIT>
IVL_INLINE void sum_add(Sum& sum, const Bytes& w, const int8_t* a, int) {
  const int32_t a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
  for (int i = 0; i < 16; ++i) {
    const uint8_t* four = w.at + 4 * i;
    sum.at[i] += four[0] * a0 + four[1] * a1 + four[2] * a2 + four[3] * a3;
  }
}
template <int LIMIT>
IVL_INLINE Floats sum_scaled(const Sum& sum, const Floats& scale, const Floats&) {
  Floats y;
  for (int i = 0; i < 16; ++i) y.at[i] = static_cast<float>(sum.at[i]) * scale.at[i];
  return y;
}

IVL_INLINE Floats splat(float value) {
  Floats x;
  for (float& lane : x.at) lane = value;
  return x;
}
IVL_INLINE Floats zeros() { return splat(0.0f); }
IVL_INLINE Floats load_floats(const float* p) {
  Floats x;
  memcpy(x.at, p, 64);
  return x;
}
IVL_INLINE void store_floats(float* p, const Floats& x) { memcpy(p, x.at, 64); }
IVL_INLINE Floats multiply(Floats a, const Floats& b) {
  for (int i = 0; i < 16; ++i) a.at[i] *= b.at[i];
  return a;
}
IVL_INLINE Floats add(Floats a, const Floats& b) {
  for (int i = 0; i < 16; ++i) a.at[i] += b.at[i];
  return a;
}
IVL_INLINE Floats multiply_add(const Floats& a, const Floats& b, Floats c) {
  for (int i = 0; i < 16; ++i) c.at[i] += a.at[i] * b.at[i];
  return c;
}
IVL_INLINE Floats maximum(Floats a, const Floats& b) {
  for (int i = 0; i < 16; ++i) a.at[i] = b.at[i] > a.at[i] ? b.at[i] : a.at[i];
  return a;
}
IVL_INLINE Floats magnitude(Floats a) {
  for (float& lane : a.at) lane = lane < 0 ? -lane : lane;
  return a;
}
IVL_INLINE float largest(const Floats& a) {
  float most = a.at[0];
  for (float lane : a.at) most = lane > most ? lane : most;
  return most;
}
// Halves are added to halves, as the registers of other instruction sets are folded.
IVL_INLINE float total(Floats a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.at[i] += a.at[i + width];
  }
  return a.at[0];
}

IVL_INLINE uint16_t any_to_float16(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7FFFFFFF;
  if (rest > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (rest >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  return static_cast<uint16_t>(float16_of_float<uint32_t>(x));
}

IVL_INLINE Floats from_float16(const void* p) {
  uint16_t halves[16];
  memcpy(halves, p, 32);
  Floats x;
  for (int i = 0; i < 16; ++i) x.at[i] = float_of_float16<float, uint32_t>(halves[i]);
  return x;
}
IVL_INLINE Floats from_bfloat16(const void* p) {
  uint16_t halves[16];
  memcpy(halves, p, 32);
  Floats x;
  for (int i = 0; i < 16; ++i) x.at[i] = bits_as<float>(static_cast<uint32_t>(halves[i]) << 16);
  return x;
}
IVL_INLINE Floats from_int8(const void* p) {
  Floats x;
  for (int i = 0; i < 16; ++i) x.at[i] = static_cast<const int8_t*>(p)[i];
  return x;
}
IVL_INLINE Floats from_uint8(const void* p) {
  Floats x;
  for (int i = 0; i < 16; ++i) x.at[i] = static_cast<const uint8_t*>(p)[i];
  return x;
}
IVL_INLINE int32_t to_int8(int8_t* p, const Floats& x) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) {
    p[i] = static_cast<int8_t>(std::lrint(x.at[i]));
    sum += p[i];
  }
  return sum;
}
IVL_INLINE void to_float16(void* p, const Floats& x) {
  uint16_t halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = any_to_float16(x.at[i]);
  memcpy(p, halves, 32);
}
IVL_INLINE void to_bfloat16(void* p, const Floats& x) {
  uint16_t halves[16];
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = bits_as<uint32_t>(x.at[i]);
    const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    halves[i] = static_cast<uint16_t>(nan ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
  memcpy(p, halves, 32);
}
// 16 vectors as the rows of a square, turned into its columns.
IVL_INLINE void transpose(Floats* x) {
  float square[16][16];
  for (int i = 0; i < 16; ++i) store_floats(square[i], x[i]);
  for (int i = 0; i < 16; ++i) {
    float column[16];
    for (int j = 0; j < 16; ++j) column[j] = square[j][i];
    x[i] = load_floats(column);
  }
}
IVL_INLINE void prefetch(const void*) {}

}  // namespace IVL_VARIANT
}  // namespace ivl
