#include "bfloat16_matmul.hpp"

#include <algorithm>

#include "float_matmul.hpp"
#include "isa.hpp"
#include "processor.hpp"
#include "threads.hpp"

namespace ivl {
namespace {

constexpr int64_t kTaskOutputs = 64;

}  // namespace

bool has_bfloat16_products() {
  return processor().avx512bf16 && kernels().bfloat16.multiply != nullptr;
}

bool bfloat16_products_pay(int64_t num_rows) {
  return has_bfloat16_products() && num_rows > kernels().floats.few_rows;
}

void Bfloat16Rows::resize(int64_t num_rows, int64_t columns) {
  num_rows_ = num_rows;
  columns_ = columns;
  kernels_ = &ivl::kernels().bfloat16;
  memory_.reserve(static_cast<size_t>(2 * num_rows * kernels_->row_stride(columns)));
}

void Bfloat16Rows::fill(const void* x, Dtype dtype, int64_t row_stride, int64_t tile, int64_t first,
                        int64_t count) {
  const int64_t row = tile * kTileRows;
  kernels_->round(x, dtype, row_stride, columns_, first, count, row,
                  std::min(row + kTileRows, num_rows_), memory_.as<uint16_t>());
}

void bfloat16_matmul_outputs(const void* weights, int64_t rows, const float* bias,
                             const Bfloat16Rows& x, int64_t first, int64_t last, void* out,
                             Dtype out_dtype, int64_t out_stride, bool add) {
  static thread_local Buffer scratch;
  const Bfloat16Kernels& of_isa = x.kernels();
  scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(x.num_rows(), x.columns())));
  of_isa.multiply({weights, Dtype::bfloat16, rows, x.columns(), x.data(), x.num_rows(), bias, out,
                   out_dtype, out_stride, add},
                  first, std::min(last, rows), scratch.data());
}

void bfloat16_matmul(const FloatProduct& product) {
  static thread_local Bfloat16Rows rows;  // each thread that calls has its own
  Bfloat16Rows& x = rows;                 // and the others of the pool see the caller's
  x.resize(product.num_rows, product.columns);
  const int64_t tiles = (product.num_rows + Bfloat16Rows::kTileRows - 1) / Bfloat16Rows::kTileRows;
  parallel_for(tiles, [&](int64_t tile) {
    x.fill(product.x, product.x_dtype, product.columns, tile, 0, product.columns);
  });
  parallel_for((product.rows + kTaskOutputs - 1) / kTaskOutputs, [&](int64_t task) {
    const int64_t first = task * kTaskOutputs;
    bfloat16_matmul_outputs(product.weights, product.rows, product.bias, x, first,
                            first + kTaskOutputs, product.out, product.out_dtype, product.rows,
                            false);
  });
}

}  // namespace ivl
