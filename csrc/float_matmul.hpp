// Products with weights of 16 or 32 bits, as they lie in memory: y = x W^T + bias, summed in float32.
//
// For few rows of x the weights are read once, which is all that counts then. For many rows they are
// widened to float32, a panel at a time: on processors without fast products of 16-bit numbers that
// is the fastest way to multiply by them.
#pragma once

#include <cstdint>

#include "matmul.hpp"

namespace ivl {

struct FloatKernels;

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

// Rows of activations as float32 in the order of the kernels, for callers that run on several
// threads themselves. Can be filled again and again; the memory stays.
class FloatRows {
 public:
  static constexpr int kTileRows = 12;

  void resize(int64_t num_rows, int64_t columns);
  // Takes the rows [12 * tile, 12 * tile + 12) of x float32 (num_rows, columns), without gaps.
  void fill(const float* x, int64_t tile);

  int64_t num_rows() const { return num_rows_; }
  int64_t columns() const { return columns_; }
  const float* data() const { return memory_.as<float>(); }
  // Those that the order is for: another instruction set may be chosen in the meantime.
  const FloatKernels& kernels() const { return *kernels_; }

 private:
  const FloatKernels* kernels_ = nullptr;  // of `resize`
  int64_t num_rows_ = 0, columns_ = 0;
  Buffer memory_;
};

// Outputs [first, last) of weights (rows, columns), on this thread; first is a multiple of 32. out
// float32 (num_rows, ...) points to output `first` of row 0. With `add`, products are added to what
// is there.
void float_matmul_outputs(const void* weights, Dtype dtype, int64_t rows, const float* bias,
                          const FloatRows& x, int64_t first, int64_t last, float* out,
                          int64_t out_stride, bool add);

}  // namespace ivl
