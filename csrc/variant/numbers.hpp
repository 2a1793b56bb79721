// Plain numbers in memory, sixteen at a time: of any type to float32 and back.
#pragma once

#include "dtype.hpp"
#include "simd.hpp"

namespace ivl {
namespace IVL_VARIANT {

template <Dtype DTYPE>
IVL_INLINE Floats load_numbers(const void* p) {
  if constexpr (DTYPE == Dtype::float16) return from_float16(p);
  if constexpr (DTYPE == Dtype::bfloat16) return from_bfloat16(p);
  return load_floats(static_cast<const float*>(p));
}

// The first `count` of them, and zeros in the place of the others.
template <Dtype DTYPE>
IVL_INLINE Floats load_numbers(const void* p, int64_t count) {
  if (count >= 16) return load_numbers<DTYPE>(p);
  alignas(64) uint8_t whole[64] = {};
  if (count > 0) memcpy(whole, p, static_cast<size_t>(count * bytes_of(DTYPE)));
  return load_numbers<DTYPE>(whole);
}

IVL_INLINE Floats load_numbers(const void* p, Dtype dtype, int64_t count = 16) {
  if (dtype == Dtype::float16) return load_numbers<Dtype::float16>(p, count);
  if (dtype == Dtype::bfloat16) return load_numbers<Dtype::bfloat16>(p, count);
  return load_numbers<Dtype::float32>(p, count);
}

// The largest of `count` numbers, or `least` if none is larger.
IVL_INLINE float largest_of(const float* x, int64_t count, float least) {
  Floats most = splat(least);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) most = maximum(most, load_floats(x + i));
  float found = largest(most);
  for (; i < count; ++i) found = x[i] > found ? x[i] : found;
  return found;
}

// Rounded to nearest, ties to even.
IVL_INLINE void store_numbers(void* p, Dtype dtype, Floats y) {
  if (dtype == Dtype::float32) store_floats(static_cast<float*>(p), y);
  if (dtype == Dtype::float16) to_float16(p, y);
  if (dtype == Dtype::bfloat16) to_bfloat16(p, y);
}

}  // namespace IVL_VARIANT
}  // namespace ivl
