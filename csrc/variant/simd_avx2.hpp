// AVX2 with FMA: lanes 0 to 7 are one register, lanes 8 to 15 another.
//
// There is no product of bytes with sums of 32 bits here. `maddubs` sums two products to 16 bits
// and saturates, so what may be added up there depends on how large the weights can be.
#pragma once

#include <immintrin.h>

#define IVL_INLINE static inline __attribute__((always_inline))

namespace ivl {
namespace IVL_VARIANT {

#define IVL_ROW_BLOCKS 2, 1
constexpr int kFloatRows = 6;
constexpr int kFloatVectors = 1;

struct Bytes { __m256i low, high; };
struct Floats { __m256 low, high; };
struct Sum { __m256i low, high, low_16, high_16; };

// Weights of 8 bits are made signed: unsigned ones would saturate.
constexpr bool kSignedBytes = true;
constexpr int32_t kFloatBits = 0;
constexpr float kFloatBase = 0.0f;

IVL_INLINE Bytes load_bytes(const void* p) {
  const __m256i* at = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
IVL_INLINE void store_bytes(void* p, Bytes x) {
  __m256i* at = static_cast<__m256i*>(p);
  _mm256_storeu_si256(at, x.low);
  _mm256_storeu_si256(at + 1, x.high);
}
template <int FROM, int BITS, int TO>
IVL_INLINE __m256i pick(__m256i x) {
  constexpr int mask = ((1 << BITS) - 1) << TO;
  if constexpr (FROM > TO) x = _mm256_srli_epi16(x, FROM - TO);
  if constexpr (FROM < TO) x = _mm256_slli_epi16(x, TO - FROM);
  return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask)));
}
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick(Bytes x) {
  return {pick<FROM, BITS, TO>(x.low), pick<FROM, BITS, TO>(x.high)};
}
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick_or(Bytes low, Bytes x) {
  return {_mm256_or_si256(low.low, pick<FROM, BITS, TO>(x.low)),
          _mm256_or_si256(low.high, pick<FROM, BITS, TO>(x.high))};
}
IVL_INLINE Bytes lookup(const uint8_t* table, Bytes x) {
  const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  const __m256i both = _mm256_broadcastsi128_si256(one);
  return {_mm256_shuffle_epi8(both, x.low), _mm256_shuffle_epi8(both, x.high)};
}

IVL_INLINE Sum sum_from(int32_t start) {
  const __m256i all = _mm256_set1_epi32(start);
  return {all, all, all, all};
}
template <int LIMIT>
IVL_INLINE void sum_add(Sum& sum, Bytes w, const int8_t* a, int step) {
  int32_t four;
  memcpy(&four, a, 4);
  const __m256i x = _mm256_set1_epi32(four);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i low, high;
  if constexpr (LIMIT == 256) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    const __m256i a_low = _mm256_xor_si256(w.low, flip), a_high = _mm256_xor_si256(w.high, flip);
    low = _mm256_maddubs_epi16(_mm256_abs_epi8(a_low), _mm256_sign_epi8(x, a_low));
    high = _mm256_maddubs_epi16(_mm256_abs_epi8(a_high), _mm256_sign_epi8(x, a_high));
  } else {
    low = _mm256_maddubs_epi16(w.low, x);
    high = _mm256_maddubs_epi16(w.high, x);
  }
  // So many steps stay below 2^15: 2 * 127 * (LIMIT - 1) each.
  constexpr int steps = LIMIT == 16 ? 8 : LIMIT == 32 ? 4 : LIMIT == 64 ? 2 : 1;
  if (step % steps != 0) {
    low = _mm256_add_epi16(low, sum.low_16);
    high = _mm256_add_epi16(high, sum.high_16);
  }
  if (step % steps == steps - 1) {
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(low, ones));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(high, ones));
  } else {
    sum.low_16 = low;
    sum.high_16 = high;
  }
}
template <int LIMIT>
IVL_INLINE Floats sum_scaled(const Sum& sum, Floats scale, Floats) {
  return {_mm256_mul_ps(_mm256_cvtepi32_ps(sum.low), scale.low),
          _mm256_mul_ps(_mm256_cvtepi32_ps(sum.high), scale.high)};
}

IVL_INLINE Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
IVL_INLINE Floats zeros() { return splat(0.0f); }
IVL_INLINE Floats load_floats(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
IVL_INLINE void store_floats(float* p, Floats x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
IVL_INLINE Floats multiply(Floats a, Floats b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
IVL_INLINE Floats add(Floats a, Floats b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
IVL_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
IVL_INLINE Floats maximum(Floats a, Floats b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
IVL_INLINE Floats magnitude(Floats a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
IVL_INLINE float largest(Floats a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
IVL_INLINE float total(Floats a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
IVL_INLINE Floats from_float16(const void* p) {
  const __m128i* at = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}
IVL_INLINE Floats from_bfloat16(const void* p) {
  const __m128i* at = static_cast<const __m128i*>(p);
  const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(at));
  const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
IVL_INLINE Floats from_int8(const void* p) {
  const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
IVL_INLINE Floats from_uint8(const void* p) {
  const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
}
IVL_INLINE int32_t to_int8(int8_t* p, Floats x) {
  const __m256i low = _mm256_cvtps_epi32(x.low), high = _mm256_cvtps_epi32(x.high);
  // Packing works on halves of registers: their order is put right before the last step.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  const __m256i eight = _mm256_add_epi32(low, high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
IVL_INLINE void to_float16(void* p, Floats x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  __m128i* at = static_cast<__m128i*>(p);
  _mm_storeu_si128(at, _mm256_cvtps_ph(x.low, nearest));
  _mm_storeu_si128(at + 1, _mm256_cvtps_ph(x.high, nearest));
}
IVL_INLINE __m256i bfloat16_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i y = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  y = _mm256_srli_epi32(y, 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(y, _mm256_set1_epi32(0x7FC0), nan);
}
IVL_INLINE void to_bfloat16(void* p, Floats x) {
  const __m256i both = _mm256_packus_epi32(bfloat16_bits(x.low), bfloat16_bits(x.high));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(both, 0xD8));
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
IVL_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace IVL_VARIANT
}  // namespace ivl
