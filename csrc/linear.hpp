// Linear layers whose weights are packed blocks or plain numbers, for callers that run on several
// threads themselves: activations are prepared once, tile by tile, for all layers that share them.
#pragma once

#include <cstdint>

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
class Inputs {
 public:
  static constexpr int kTileRows = 12;
  static_assert(QuantizedRows::kTileRows == kTileRows && FloatRows::kTileRows == kTileRows);

  // Which of the two forms `layer` reads.
  void add_reader(const Linear& layer) { (layer.packed ? as_bytes_ : as_floats_) = true; }
  bool as_floats() const { return as_floats_; }

  void resize(int64_t num_rows, int64_t columns);
  int64_t num_tiles() const { return (num_rows_ + kTileRows - 1) / kTileRows; }
  // Takes tile `tile` of x float32 (num_rows, columns), without gaps.
  void fill(const float* x, int64_t tile);
  // Takes columns [first, first + count) of all rows as bytes; multiples of 32. x points to column
  // `first` of row 0.
  void fill_bytes(const float* x, int64_t row_stride, int64_t first, int64_t count);
  void fill_floats(const float* x, int64_t tile) { floats_.fill(x, tile); }
  bool as_bytes() const { return as_bytes_; }

  int64_t num_rows() const { return num_rows_; }
  const QuantizedRows& bytes() const { return bytes_; }
  const FloatRows& floats() const { return floats_; }

 private:
  bool as_bytes_ = false, as_floats_ = false;
  int64_t num_rows_ = 0;
  QuantizedRows bytes_;
  FloatRows floats_;
};

// Outputs [first, last), on this thread; first is a multiple of 32. out float32 (num_rows, ...)
// points to output `first` of row 0. With `add`, products are added to what is there.
void multiply_outputs(const Linear& layer, const Inputs& x, int64_t first, int64_t last, float* out,
                      int64_t out_stride, bool add = false);

}  // namespace ivl
