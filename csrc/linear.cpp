#include "linear.hpp"

namespace ivl {

void Inputs::add_reader(const Linear& layer) {
  if (layer.packed) {
    reads_bytes_ = true;
  } else {
    (layer.dtype == Dtype::bfloat16 ? reads_bfloat16_ : reads_floats_) = true;
  }
}

void Inputs::resize(int64_t num_rows, int64_t columns, bool of_prompt) {
  num_rows_ = num_rows;
  columns_ = columns;
  as_bfloat16_ = reads_bfloat16_ && narrow_.resize(num_rows, columns, of_prompt);
  as_floats_ = reads_floats_ || (reads_bfloat16_ && !as_bfloat16_);
  if (reads_bytes_) bytes_.resize(num_rows, columns);
  if (as_floats_) floats_.resize(num_rows, columns);
}

void Inputs::fill(const float* x, int64_t tile) {
  if (reads_bytes_) bytes_.quantize_part(x, columns_, tile, 0, bytes_.num_groups());
  if (as_floats_) floats_.fill(x, tile);
  if (as_bfloat16_) narrow_.fill(x, Dtype::float32, columns_, tile, 0, columns_);
}

void Inputs::fill_columns(const float* x, int64_t row_stride, int64_t first, int64_t count) {
  constexpr int64_t kGroup = QuantizedRows::kGroup;
  for (int64_t tile = 0; tile < num_tiles(); ++tile) {
    if (reads_bytes_) {
      bytes_.quantize_part(x, row_stride, tile, first / kGroup, count / kGroup);
    }
    if (as_bfloat16_) narrow_.fill(x, Dtype::float32, row_stride, tile, first, count);
  }
}

void multiply_outputs(const Linear& layer, const Inputs& x, int64_t first, int64_t last, float* out,
                      int64_t out_stride, bool add) {
  if (layer.packed) {
    matmul_outputs(*layer.packed, layer.bias, x.bytes(), first, last, out, out_stride, add);
  } else if (x.as_bfloat16() && layer.dtype == Dtype::bfloat16) {
    bfloat16_matmul_outputs(layer.numbers, layer.rows, layer.bias, x.bfloat16(), first, last,
                            out - first, Dtype::float32, out_stride, add);
  } else {
    float_matmul_outputs(layer.numbers, layer.dtype, layer.rows, layer.bias, x.floats(), first,
                         last, out, out_stride, add);
  }
}

}  // namespace ivl
