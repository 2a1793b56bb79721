// Products with weights of 16 or 32 bits, as they lie in memory: y = x W^T + bias, summed in float32.
//
// For few rows of x the weights are read once, which is all that counts then. For many rows they are
// widened to float32, a panel at a time: on processors without fast products of 16-bit numbers that
// is the fastest way to multiply by them.
#pragma once

#include <cstdint>

#include "matmul.hpp"

namespace ivl {

struct FloatProduct {
  const void* weights;  // (rows, columns), without gaps
  Dtype weights_dtype;
  int64_t rows, columns;
  const void* x;  // (num_rows, columns), without gaps
  Dtype x_dtype;
  int64_t num_rows;
  const float* bias;  // (rows,), or null
  void* out;          // (num_rows, rows), without gaps
  Dtype out_dtype;
};

void float_matmul(const FloatProduct& product);

}  // namespace ivl
