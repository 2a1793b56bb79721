// Products with weights of bfloat16, on processors that multiply pairs of such numbers (AVX-512
// BF16): y = x W^T + bias. Rows are rounded to bfloat16; sums are float32.
//
// Weights stay as they lie in memory. For few rows they are read once. For many, 32 rows of weights
// are turned into columns of pairs, in a buffer that stays in a cache while all rows pass by.
//
// The two add up in another order. So that no bit of an answer depends on how many others are written
// with it, a step of several answers is few rows; and so that none depends on where a prompt is cut,
// its chunks never are.
#pragma once

#include <cstdint>

#include "dtype.hpp"
#include "memory.hpp"

namespace ivl {

struct Bfloat16Kernels;

struct FloatProduct;

// Whether such products run on this machine and in the instruction set in use, which another thread
// may change at any time.
bool has_bfloat16_products();

// Rows of activations in bfloat16. Can be filled again and again; the memory stays.
class Bfloat16Rows {
 public:
  static constexpr int kTileRows = 12;

  // of_prompt: they are never few. False, and nothing may be filled, without such products.
  bool resize(int64_t num_rows, int64_t columns, bool of_prompt);
  // Takes columns [first, first + count) of the rows [12 * tile, 12 * tile + 12); first is a
  // multiple of 32, and so is count, unless it is all that is left. x points to column `first` of
  // row 0.
  void fill(const void* x, Dtype dtype, int64_t row_stride, int64_t tile, int64_t first,
            int64_t count);

  int64_t num_rows() const { return num_rows_; }
  int64_t columns() const { return columns_; }
  bool are_few() const { return are_few_; }
  const uint16_t* data() const { return memory_.as<uint16_t>(); }
  // Those that the order is for: another instruction set may be chosen in the meantime.
  const Bfloat16Kernels& kernels() const { return *kernels_; }

 private:
  const Bfloat16Kernels* kernels_ = nullptr;  // of `resize`
  int64_t num_rows_ = 0, columns_ = 0;
  bool are_few_ = false;
  Buffer memory_;
};

// Outputs [first, last) of weights (rows, columns), on this thread; first is a multiple of 32. out
// (num_rows, ...) points to output 0 of row 0. With `add`, which wants float32, products are added to
// what is there.
void bfloat16_matmul_outputs(const void* weights, int64_t rows, const float* bias,
                             const Bfloat16Rows& x, int64_t first, int64_t last, void* out,
                             Dtype out_dtype, int64_t out_stride, bool add);

// A whole product whose weights are bfloat16, on all threads. False, and nothing done, without such
// products.
bool bfloat16_matmul(const FloatProduct& product);

}  // namespace ivl
