// Float16 and float32, in integers: for a number (uint32_t, float), and for vectors of them in the
// extension of C that GCC and Clang share. All is static: see variant/simd.hpp.
#pragma once

#include <cstdint>
#include <cstring>

namespace ivl {

// The same bits as another type.
template <class To, class From>
static inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Float, class Int>
static inline Float float_of_float16(Int half) {
  const Int sign = (half & 0x8000) << 16, size = half & 0x7fff;
  const Int normal = (size << 13) + (112 << 23);
  // What is below the normal numbers of float16 is one with a leading 1 too many.
  const Int small = bits_as<Int>(bits_as<Float>(normal + (1 << 23)) - 0x1p-14f);
  // Infinities and what is no number keep an exponent of all ones.
  const Int special = normal + (112 << 23);
  return bits_as<Float>(sign | (size < 0x400 ? small : size < 0x7c00 ? normal : special));
}

static inline float float16_at(const uint8_t* bytes) {
  return float_of_float16<float, uint32_t>(bytes[0] | static_cast<uint32_t>(bytes[1]) << 8);
}

// Bits of the nearest float16, ties to even, of numbers below 65520.
template <class Int, class Float>
static inline Int float16_of_float(Float value) {
  const Int bits = bits_as<Int>(value), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
  const Int normal = (size - (112 << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  // Added to a half, what is below the normal numbers of float16 is rounded to multiples of 2^-24.
  const Int small = bits_as<Int>(bits_as<Float>(size) + 0.5f) - 0x3f000000;
  return sign | (size < (113 << 23) ? small : normal);
}

}  // namespace ivl
