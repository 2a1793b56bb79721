// Tiles of float16 products, by AVX-512 FP16. Called only where the processor has it.
#pragma once

#if defined(__AVX512VNNI__) && defined(IVL_COMPILES_FLOAT16)
#define IVL_HAS_FLOAT16_TILES 1
#include <immintrin.h>

#include <cstdint>

#include "dense.hpp"
#include "simd.hpp"

namespace ivl {
namespace IVL_VARIANT {

// Units of two products that are summed in float16 before they are added in float32: each of the
// two lanes of an output then holds the sum of 32 products.
constexpr int64_t kUnitsAtOnce = 32;

// out (kRows, 32) float32 = a (kRows, 2 * units) float16 times one panel.
template <int kRows>
__attribute__((target("avx512fp16"))) inline void float16_tile(const uint16_t* a, int64_t stride,
                                                               const uint16_t* panel, int64_t units,
                                                               float* out) {
  alignas(64) float wide[kRows][4][16];
  for (int64_t start = 0; start < units; start += kUnitsAtOnce) {
    const int64_t end = start + kUnitsAtOnce < units ? start + kUnitsAtOnce : units;
    __m512h sums[kRows][2];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ph();
    for (int64_t u = start; u < end; ++u) {
      const __m512h w0 = _mm512_loadu_ph(panel + u * 2 * kPanel);
      const __m512h w1 = _mm512_loadu_ph(panel + u * 2 * kPanel + kPanel);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        int pair;
        __builtin_memcpy(&pair, a + r * stride + 2 * u, sizeof pair);
        const __m512h x = _mm512_castsi512_ph(_mm512_set1_epi32(pair));
        sums[r][0] = _mm512_fmadd_ph(x, w0, sums[r][0]);
        sums[r][1] = _mm512_fmadd_ph(x, w1, sums[r][1]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i bits = _mm512_castph_si512(sums[r][half]);
        __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
        __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
        if (start) {
          low = _mm512_add_ps(low, _mm512_load_ps(wide[r][2 * half]));
          high = _mm512_add_ps(high, _mm512_load_ps(wide[r][2 * half + 1]));
        }
        _mm512_store_ps(wide[r][2 * half], low);
        _mm512_store_ps(wide[r][2 * half + 1], high);
      }
    }
  }
  // Neighbouring lanes belong to one output.
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  for (int r = 0; r < kRows; ++r) {
    for (int half = 0; half < 2; ++half) {
      const __m512 low = _mm512_load_ps(wide[r][2 * half]);
      const __m512 high = _mm512_load_ps(wide[r][2 * half + 1]);
      _mm512_storeu_ps(out + r * kPanel + 16 * half,
                       _mm512_add_ps(_mm512_permutex2var_ps(low, even, high),
                                     _mm512_permutex2var_ps(low, odd, high)));
    }
  }
}

inline void float16_tile(int rows, const uint16_t* a, int64_t stride, const uint16_t* panel,
                         int64_t units, float* out) {
  switch (rows) {
    case 12: return float16_tile<12>(a, stride, panel, units, out);
    case 11: return float16_tile<11>(a, stride, panel, units, out);
    case 10: return float16_tile<10>(a, stride, panel, units, out);
    case 9: return float16_tile<9>(a, stride, panel, units, out);
    case 8: return float16_tile<8>(a, stride, panel, units, out);
    case 7: return float16_tile<7>(a, stride, panel, units, out);
    case 6: return float16_tile<6>(a, stride, panel, units, out);
    case 5: return float16_tile<5>(a, stride, panel, units, out);
    case 4: return float16_tile<4>(a, stride, panel, units, out);
    case 3: return float16_tile<3>(a, stride, panel, units, out);
    case 2: return float16_tile<2>(a, stride, panel, units, out);
    default: return float16_tile<1>(a, stride, panel, units, out);
  }
}

// count float32 values, a multiple of 16, to float16.
inline void to_float16(const float* x, float factor, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    to_float16(out + i, multiply(load_floats(x + i), splat(factor)));
  }
}

}  // namespace IVL_VARIANT
}  // namespace ivl
#endif
