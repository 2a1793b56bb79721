// The products of dense.hpp on all threads, and what owns their numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "dense.hpp"
#include "memory.hpp"

namespace ivl {

// Whether float16 products run on this machine and in the instruction set in use. Without them what
// follows throws std::invalid_argument, for that arithmetic.
bool has_float16_products();

// Rows of activations, normed, in the type of a product. The memory stays from `fill` to `fill`.
class DenseActivations {
 public:
  explicit DenseActivations(Dense type) : type_(type) {}

  // x (num_rows, width); at least one row.
  void fill(const float* x, int64_t num_rows, int64_t width, const NormArgs& norm);

  Dense type() const { return type_; }
  int64_t num_rows() const { return num_rows_; }
  int64_t width() const { return width_; }
  const DenseRows& rows() const { return rows_; }

 private:
  Dense type_;
  int64_t num_rows_ = 0, width_ = 0;
  DenseRows rows_ = {};
  Buffer values_, scales_, sums_;
};

// A weight (outputs, inputs) in panels, with its bias. Immutable.
class DenseMatrix {
 public:
  struct Part {
    const void* weight;  // (rows, inputs), without gaps
    Dtype dtype;
    int64_t rows;
  };

  // The rows of all parts, which are copied, as is the bias (outputs,) or null. Throws
  // std::invalid_argument for a part other than the last whose rows are no multiple of kPanel. int8:
  // the largest magnitude of a row becomes 127. float16: a row with a magnitude above kFloat16Most
  // is scaled down to it.
  DenseMatrix(Dense type, const std::vector<Part>& parts, int64_t inputs, const float* bias);

  int64_t outputs() const { return outputs_; }
  size_t num_bytes() const { return panels_.size(); }

  // out (x.num_rows(), outputs).
  void multiply(const DenseActivations& x, Epilogue epilogue, const float* channel_scales,
                float* out) const;

 private:
  Dense type_;
  int64_t outputs_ = 0, inputs_, stride_;
  WeightMemory panels_;
  std::vector<float> scales_, bias_;  // empty: 1 and none
};

// Throws std::invalid_argument without the products of its type.
void tile_attention(const TileAttention& args);

}  // namespace ivl
