// AVX-512 with VNNI: a lane is 32 bits of one register.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header leaves unread lanes uninitialised on purpose, and is warned about here.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define IVL_INLINE static inline __attribute__((always_inline))

namespace ivl {
namespace IVL_VARIANT {

// Rows of activations that a kernel keeps in registers, the most first.
#define IVL_ROW_BLOCKS 12, 8, 4, 2, 1
// Products of floats keep the sums of so many rows, for so many vectors of 16 weights' rows.
constexpr int kFloatRows = 12;
constexpr int kFloatVectors = 2;

using Bytes = __m512i;
using Floats = __m512;
using Sum = __m512i;

// Weights of 8 bits stay unsigned; what is added to them is taken off through the activations' sums.
constexpr bool kSignedBytes = false;
// 1.5 * 2^23: a sum that starts from these bits is, read as float32, this number plus the sum. It
// is taken off in the multiply-add that applies the scale, and converting costs nothing.
constexpr int32_t kFloatBits = 0x4B400000;
constexpr float kFloatBase = 12582912.0f;

IVL_INLINE Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
IVL_INLINE void store_bytes(void* p, Bytes x) { _mm512_storeu_si512(p, x); }

// BITS bits of every byte from bit FROM on, moved to bit TO.
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick(Bytes x) {
  constexpr int mask = ((1 << BITS) - 1) << TO;
  if constexpr (FROM > TO) x = _mm512_srli_epi16(x, FROM - TO);
  if constexpr (FROM < TO) x = _mm512_slli_epi16(x, TO - FROM);
  return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(mask)));
}
// `low` with these bits set as well.
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick_or(Bytes low, Bytes x) {
  constexpr int mask = ((1 << BITS) - 1) << TO;
  if constexpr (FROM > TO) x = _mm512_srli_epi16(x, FROM - TO);
  if constexpr (FROM < TO) x = _mm512_slli_epi16(x, TO - FROM);
  return _mm512_ternarylogic_epi32(low, x, _mm512_set1_epi8(static_cast<char>(mask)), 0xF8);
}
// table[x] for bytes below 16.
IVL_INLINE Bytes lookup(const uint8_t* table, Bytes x) {
  const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(one), x);
}

IVL_INLINE Sum sum_from(int32_t start) { return _mm512_set1_epi32(start); }
// Adds in each lane the products of its 4 weights, below LIMIT, with the 4 activations at `a`.
template <int LIMIT>
IVL_INLINE void sum_add(Sum& sum, Bytes w, const int8_t* a, int) {
  int32_t four;
  memcpy(&four, a, 4);
  sum = _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
}
// scale * sum, of a sum that began with kFloatBits; `base` is scale * kFloatBase.
template <int LIMIT>
IVL_INLINE Floats sum_scaled(const Sum& sum, Floats scale, Floats base) {
  return _mm512_fmsub_ps(_mm512_castsi512_ps(sum), scale, base);
}

IVL_INLINE Floats zeros() { return _mm512_setzero_ps(); }
IVL_INLINE Floats splat(float x) { return _mm512_set1_ps(x); }
IVL_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
IVL_INLINE void store_floats(float* p, Floats x) { _mm512_storeu_ps(p, x); }
IVL_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
IVL_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
IVL_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
IVL_INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
IVL_INLINE Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
IVL_INLINE float largest(Floats a) { return _mm512_reduce_max_ps(a); }
IVL_INLINE float total(Floats a) { return _mm512_reduce_add_ps(a); }
// The totals of x[4 * i + r] at out[4 * r + i], in the order of `total`: halves are added up, four of
// them, two, and the last two numbers, of all 16 at once.
IVL_INLINE void totals(const Floats* x, float* out) {
  Floats a[8], b[4], c[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[i] = add(_mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0x44),
               _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0xEE));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = add(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
               _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xDD));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    c[i] = add(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44),
               _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xEE));
  }
  store_floats(out, add(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xDD)));
}
IVL_INLINE Floats from_float16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
IVL_INLINE Floats from_bfloat16(const void* p) {
  const __m256i x = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
IVL_INLINE Floats from_int8(const void* p) {
  const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
}
IVL_INLINE Floats from_uint8(const void* p) {
  const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
}
// Rounded to nearest, ties to even; the sum of the 16 is returned.
IVL_INLINE int32_t to_int8(int8_t* p, Floats x) {
  const __m512i whole = _mm512_cvtps_epi32(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(whole));
  return _mm512_reduce_add_epi32(whole);
}
IVL_INLINE void to_float16(void* p, Floats x) {
  const __m256i y = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(static_cast<__m256i*>(p), y);
}
// Rounded to nearest, ties to even; NaN stays NaN.
IVL_INLINE void to_bfloat16(void* p, Floats x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i y = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  y = _mm512_srli_epi32(y, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  y = _mm512_mask_mov_epi32(y, nan, _mm512_set1_epi32(0x7FC0));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(y));
}
// 16 vectors as the rows of a square, turned into its columns: pairs, fours, then whole quarters.
IVL_INLINE void transpose(Floats* x) {
  __m512 y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_shuffle_ps(y[i], y[i + 2], 0x44);
    x[i + 1] = _mm512_shuffle_ps(y[i], y[i + 2], 0xEE);
    x[i + 2] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0x44);
    x[i + 3] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xDD);
    const __m512 c = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xDD);
    y[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    y[i + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
    y[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    y[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}
IVL_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace IVL_VARIANT
}  // namespace ivl
