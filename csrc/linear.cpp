#include "linear.hpp"

namespace ivl {

void Inputs::resize(int64_t num_rows, int64_t columns) {
  num_rows_ = num_rows;
  if (as_bytes_) bytes_.resize(num_rows, columns);
  if (as_floats_) floats_.resize(num_rows, columns);
}

void Inputs::fill(const float* x, int64_t tile) {
  if (as_bytes_) bytes_.quantize_part(x, bytes_.columns(), tile, 0, bytes_.num_groups());
  if (as_floats_) floats_.fill(x, tile);
}

void Inputs::fill_bytes(const float* x, int64_t row_stride, int64_t first, int64_t count) {
  constexpr int64_t kGroup = QuantizedRows::kGroup;
  for (int64_t tile = 0; tile < num_tiles(); ++tile) {
    bytes_.quantize_part(x, row_stride, tile, first / kGroup, count / kGroup);
  }
}

void multiply_outputs(const Linear& layer, const Inputs& x, int64_t first, int64_t last, float* out,
                      int64_t out_stride, bool add) {
  if (layer.packed) {
    matmul_outputs(*layer.packed, layer.bias, x.bytes(), first, last, out, out_stride, add);
  } else {
    float_matmul_outputs(layer.numbers, layer.dtype, layer.rows, layer.bias, x.floats(), first,
                         last, out, out_stride, add);
  }
}

}  // namespace ivl
