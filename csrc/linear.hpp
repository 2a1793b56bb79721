// Linear layers whose weights are packed blocks or plain numbers, for callers that run on several
// threads themselves: activations are prepared once, tile by tile, for all layers that share them.
#pragma once

#include <cstdint>

#include "bfloat16_matmul.hpp"
#include "float_matmul.hpp"
#include "matmul.hpp"

namespace ivl {

// y = x W^T + bias.
struct Linear {
  const PackedMatrix* packed = nullptr;  // or, when it is null:
  const void* numbers = nullptr;         // (rows, columns), without gaps
  Dtype dtype = Dtype::float32;
  int64_t rows = 0, columns = 0;
  const float* bias = nullptr;  // (rows,), or null
};

// Activations (num_rows, columns) in the forms that the layers need which read them.
//
// Weights of bfloat16 read rows of bfloat16 where the processor has such products, else of float32.
// of_prompt: all rows are of prompts (bfloat16_matmul.hpp).
class Inputs {
 public:
  static constexpr int kTileRows = 12;
  static_assert(QuantizedRows::kTileRows == kTileRows && FloatRows::kTileRows == kTileRows &&
                Bfloat16Rows::kTileRows == kTileRows);

  // Notes which of the forms `layer` reads.
  void add_reader(const Linear& layer);

  void resize(int64_t num_rows, int64_t columns, bool of_prompt);
  int64_t num_tiles() const { return (num_rows_ + kTileRows - 1) / kTileRows; }
  // Takes tile `tile` of x float32 (num_rows, columns), without gaps.
  void fill(const float* x, int64_t tile);
  // Takes columns [first, first + count) of all rows, multiples of 32, in those forms that can be
  // filled so. x points to column `first` of row 0.
  void fill_columns(const float* x, int64_t row_stride, int64_t first, int64_t count);
  // Whether there is a form that cannot; and what fills that one, once all columns are there.
  bool needs_rows() const { return as_floats_; }
  void fill_rows(const float* x, int64_t tile) { floats_.fill(x, tile); }

  int64_t num_rows() const { return num_rows_; }
  bool as_bfloat16() const { return as_bfloat16_; }
  const QuantizedRows& bytes() const { return bytes_; }
  const FloatRows& floats() const { return floats_; }
  const Bfloat16Rows& bfloat16() const { return narrow_; }

 private:
  bool reads_bytes_ = false, reads_floats_ = false, reads_bfloat16_ = false;
  bool as_floats_ = false, as_bfloat16_ = false;  // of `resize`
  int64_t num_rows_ = 0, columns_ = 0;
  QuantizedRows bytes_;
  FloatRows floats_;
  Bfloat16Rows narrow_;
};

// Outputs [first, last), on this thread; first is a multiple of 32. out float32 (num_rows, ...)
// points to output `first` of row 0. With `add`, products are added to what is there.
void multiply_outputs(const Linear& layer, const Inputs& x, int64_t first, int64_t last, float* out,
                      int64_t out_stride, bool add = false);

}  // namespace ivl
