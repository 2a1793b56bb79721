#include "bfloat16_matmul.hpp"

#include <algorithm>

#include "float_matmul.hpp"
#include "isa.hpp"
#include "processor.hpp"
#include "threads.hpp"

namespace ivl {
namespace {

constexpr int64_t kTaskOutputs = 64;

bool has_products(const Kernels& of_isa) {
  return processor().avx512bf16 && of_isa.bfloat16.multiply != nullptr;
}

}  // namespace

bool has_bfloat16_products() { return has_products(kernels()); }

bool Bfloat16Rows::resize(int64_t num_rows, int64_t columns, bool of_prompt) {
  const Kernels& of_isa = ivl::kernels();
  if (!has_products(of_isa)) return false;
  num_rows_ = num_rows;
  columns_ = columns;
  are_few_ = !of_prompt && num_rows <= of_isa.floats.few_rows;
  kernels_ = &of_isa.bfloat16;
  memory_.reserve(static_cast<size_t>(2 * num_rows * kernels_->row_stride(columns)));
  return true;
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
  const Bfloat16Kernels& of_isa = x.kernels();
  const FloatTask task = {weights, Dtype::bfloat16, rows, x.columns(), x.data(), x.num_rows(),
                          bias, out, out_dtype, out_stride, add};
  last = std::min(last, rows);
  if (x.are_few()) return of_isa.multiply_few(task, first, last);
  static thread_local Buffer scratch;
  scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(x.num_rows(), x.columns())));
  of_isa.multiply(task, first, last, scratch.data());
}

bool bfloat16_matmul(const FloatProduct& product) {
  static thread_local Bfloat16Rows rows;  // each thread that calls has its own
  Bfloat16Rows& x = rows;                 // and the others of the pool see the caller's
  if (!x.resize(product.num_rows, product.columns, false)) return false;
  const int64_t tiles = (product.num_rows + Bfloat16Rows::kTileRows - 1) / Bfloat16Rows::kTileRows;
  const auto fill = [&](int64_t tile) {
    x.fill(product.x, product.x_dtype, product.columns, tile, 0, product.columns);
  };
  if (tiles == 1) {
    fill(0);
  } else {
    parallel_for(tiles, fill);
  }
  parallel_for((product.rows + kTaskOutputs - 1) / kTaskOutputs, [&](int64_t task) {
    const int64_t first = task * kTaskOutputs;
    bfloat16_matmul_outputs(product.weights, product.rows, product.bias, x, first,
                            first + kTaskOutputs, product.out, product.out_dtype, product.rows,
                            false);
  });
  return true;
}

}  // namespace ivl
