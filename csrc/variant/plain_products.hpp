// What products with plain weights share: how far ahead they read, and how sums become outputs.
#pragma once

#include "kernels.hpp"
#include "numbers.hpp"

namespace ivl {
namespace IVL_VARIANT {

// How far ahead of few rows weights are asked for; measured.
constexpr int64_t kPrefetchBytes = 1024;
constexpr bool kHolds16Sums = kFloatRows >= 12;  // registers do, of 4 x 4 rows

// Ends a product of few rows, each of whose sums is in 16 parts: acc (W, R), of W rows of weights by
// the R rows from `row` on, to outputs [first, first + W).
template <int W, int R>
IVL_INLINE void write_block(const FloatTask& task, int64_t first, int64_t row,
                            const Floats (&acc)[W][R]) {
  alignas(64) float sums[R][W];
  if constexpr (kHolds16Sums && W == 4 && R == 4) {
    totals(&acc[0][0], &sums[0][0]);
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][i] = total(acc[i][r]);
    }
  }
  float bias[W] = {};
  if (task.bias != nullptr) memcpy(bias, task.bias + first, sizeof bias);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const int64_t at = (row + r) * task.out_stride + first;
    float y[W];
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) y[i] = sums[r][i] + bias[i];
    if (task.out_dtype == Dtype::float32) {
      float* out = static_cast<float*>(task.out) + at;
      if (task.add) {
#pragma GCC unroll 4
        for (int i = 0; i < W; ++i) y[i] += out[i];
      }
      memcpy(out, y, sizeof y);
    } else {
      alignas(64) uint8_t whole[64];
      store_numbers(whole, task.out_dtype, load_numbers<Dtype::float32>(y, W));
      memcpy(static_cast<uint8_t*>(task.out) + 2 * at, whole, 2 * W);
    }
  }
}

// Sums (num_rows, PANEL) to outputs [first, first + PANEL), as many as there are.
template <int64_t PANEL>
IVL_INLINE void write_panel(const FloatTask& task, int64_t first, const float* sums) {
  const int64_t left = task.rows - first, width = left < PANEL ? left : PANEL;
  const int64_t size = bytes_of(task.out_dtype);
  for (int64_t at = 0; at < width; at += 16) {
    const int64_t count = width - at < 16 ? width - at : 16;
    const Floats bias = task.bias == nullptr
                            ? zeros()
                            : load_numbers<Dtype::float32>(task.bias + first + at, count);
    for (int64_t row = 0; row < task.num_rows; ++row) {
      const int64_t place = row * task.out_stride + first + at;
      Floats y = add(load_floats(sums + row * PANEL + at), bias);
      if (task.add) {
        const float* before = static_cast<const float*>(task.out) + place;
        y = add(y, load_numbers<Dtype::float32>(before, count));
      }
      uint8_t* to = static_cast<uint8_t*>(task.out) + place * size;
      if (count == 16) {
        store_numbers(to, task.out_dtype, y);
      } else {
        alignas(64) uint8_t whole[64];
        store_numbers(whole, task.out_dtype, y);
        memcpy(to, whole, static_cast<size_t>(count * size));
      }
    }
  }
}

}  // namespace IVL_VARIANT
}  // namespace ivl
