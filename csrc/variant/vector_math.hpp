// Functions that a compiler turns into vector code when they are called in a plain loop: no
// branches, no library calls.
#pragma once

#include <cstdint>
#include <cstring>

#include "../allocate.hpp"

namespace ivl {
namespace IVL_VARIANT {

namespace {

// Memory of one thread, kept for its next call. Not std::vector: what a variant instantiates of the
// standard library would be shared with the other variants, and run where it must not.
template <typename T>
class Scratch {
 public:
  ~Scratch() { release(memory_); }
  // Room for `count` numbers. Throws std::bad_alloc.
  T* of(int64_t count) {
    if (count > count_) {
      release(memory_);
      memory_ = nullptr;
      count_ = 0;
      memory_ = allocate(static_cast<size_t>(count) * sizeof(T));
      count_ = count;
    }
    return reinterpret_cast<T*>(memory_);
  }

 private:
  uint8_t* memory_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace

constexpr int kLanes = 16;  // independent partial sums, for the compiler to keep in one register

// e^x within 2 ulp, and 0 below -87. The polynomial is the Taylor series of 2^f on [-1/2, 1/2].
inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float t = x * 1.44269504f;
  const float shifted = t + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  const float n = shifted - 12582912.0f;
  const float f = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * f + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// erf within 2e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
inline float fast_erf(float x) {
  const float a = x < 0 ? -x : x;
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float y = 1.0f - p * t * fast_exp(-a * a);
  return x < 0 ? -y : y;
}

inline float gelu(float x) { return 0.5f * x * (1.0f + fast_erf(x * 0.70710678f)); }

template <typename F>
inline float sum_lanes(int64_t count, F value) {
  float part[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) part[lane] += value(i + lane);
  }
  for (int lane = 0; i < count; ++i, ++lane) part[lane] += value(i);
  for (int width = kLanes / 2; width; width /= 2) {
    for (int lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
  }
  return part[0];
}

template <typename F>
inline float max_lanes(int64_t count, float start, F value) {
  float part[kLanes];
  for (float& p : part) p = start;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float v = value(i + lane);
      part[lane] = v > part[lane] ? v : part[lane];
    }
  }
  for (; i < count; ++i) {
    const float v = value(i);
    part[0] = v > part[0] ? v : part[0];
  }
  float most = part[0];
  for (float p : part) most = p > most ? p : most;
  return most;
}

}  // namespace IVL_VARIANT
}  // namespace ivl
