// Vectors of one float32 or int32 a lane, as wide as the instruction set of this variant has them,
// and what C++ has no operator for. Operators and conversions are those of GCC's vector extensions.
#pragma once

#include <cstdint>

#include "float16.hpp"

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ivl::IVL_VARIANT::quant {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
// The forms without a mask make GCC 12 warn of a value that is not used.
constexpr __mmask16 kAll = 0xffff;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));

inline Lanes splat(float value) { return value - Lanes{}; }

// The smaller and the larger; b where one of them is not a number.
inline Lanes smaller(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_min_ps((__m512)a, kAll, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Lanes)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

inline Lanes larger(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_max_ps((__m512)a, kAll, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Lanes)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

inline Lanes magnitude(Lanes a) { return (Lanes)((IntLanes)a & 0x7fffffff); }

// Lane i of the result is lane which[i] of a, or, from kLanes on, of b.
inline Lanes shuffle(Lanes a, Lanes b, IntLanes which) {
#if defined(__clang__)
  Lanes chosen;
  for (int lane = 0; lane < kLanes; ++lane)
    chosen[lane] = which[lane] < kLanes ? a[which[lane]] : b[which[lane] - kLanes];
  return chosen;
#else
  return __builtin_shuffle(a, b, which);
#endif
}

inline IntLanes to_int(Lanes whole) { return __builtin_convertvector(whole, IntLanes); }
inline Lanes to_float(IntLanes whole) { return __builtin_convertvector(whole, Lanes); }

// Bits of the nearest float16, ties to even; its largest number for values beyond it.
inline IntLanes float16_bits(Lanes value) {
  const Lanes within = smaller(larger(value, splat(-65504.0f)), splat(65504.0f));
  return float16_of_float<IntLanes>(within);
}

inline Lanes to_float16(Lanes value) { return float_of_float16<Lanes>(float16_bits(value)); }

}  // namespace ivl::IVL_VARIANT::quant
