// Tiles of bfloat16 products, by AVX-512 BF16. Called only where the processor has it.
#pragma once

#if defined(__AVX512VNNI__)
#define IVL_HAS_BFLOAT16_TILES 1
#include <immintrin.h>

#include <cstdint>

#include "dense.hpp"
#include "simd.hpp"

namespace ivl {
namespace IVL_VARIANT {

// out (kRows, 32) float32, rows `out_stride` apart, = a (kRows, 2 * units) bfloat16 times one panel,
// or with `add` that much more. Sums are in float32.
template <int kRows>
__attribute__((target("avx512bf16"))) inline void bfloat16_tile(const uint16_t* a, int64_t stride,
                                                                const uint16_t* panel,
                                                                int64_t units, float* out,
                                                                int64_t out_stride, bool add) {
  __m512 sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      sums[r][half] = add ? _mm512_loadu_ps(out + r * out_stride + 16 * half) : _mm512_setzero_ps();
    }
  }
  for (int64_t u = 0; u < units; ++u) {
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel + u * 2 * kPanel);
    const __m512bh w1 = (__m512bh)_mm512_loadu_si512(panel + u * 2 * kPanel + kPanel);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, a + r * stride + 2 * u, sizeof pair);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, w0);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, w1);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      _mm512_storeu_ps(out + r * out_stride + 16 * half, sums[r][half]);
    }
  }
}

inline void bfloat16_tile(int rows, const uint16_t* a, int64_t stride, const uint16_t* panel,
                          int64_t units, float* out, int64_t out_stride = kPanel,
                          bool add = false) {
  switch (rows) {
    case 12: return bfloat16_tile<12>(a, stride, panel, units, out, out_stride, add);
    case 11: return bfloat16_tile<11>(a, stride, panel, units, out, out_stride, add);
    case 10: return bfloat16_tile<10>(a, stride, panel, units, out, out_stride, add);
    case 9: return bfloat16_tile<9>(a, stride, panel, units, out, out_stride, add);
    case 8: return bfloat16_tile<8>(a, stride, panel, units, out, out_stride, add);
    case 7: return bfloat16_tile<7>(a, stride, panel, units, out, out_stride, add);
    case 6: return bfloat16_tile<6>(a, stride, panel, units, out, out_stride, add);
    case 5: return bfloat16_tile<5>(a, stride, panel, units, out, out_stride, add);
    case 4: return bfloat16_tile<4>(a, stride, panel, units, out, out_stride, add);
    case 3: return bfloat16_tile<3>(a, stride, panel, units, out, out_stride, add);
    case 2: return bfloat16_tile<2>(a, stride, panel, units, out, out_stride, add);
    default: return bfloat16_tile<1>(a, stride, panel, units, out, out_stride, add);
  }
}

// count float32 values, rounded to nearest, ties to even.
__attribute__((target("avx512bf16"))) inline void round_to_bfloat16(const float* x, uint16_t* out,
                                                                    int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const __mmask16 some = left < 16 ? static_cast<__mmask16>((1u << left) - 1) : __mmask16{0xFFFF};
    const __m256i y = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, x + i));
    _mm256_mask_storeu_epi16(out + i, some, y);
  }
}

}  // namespace IVL_VARIANT
}  // namespace ivl
#endif
