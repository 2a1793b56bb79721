#include "float_matmul.hpp"

#include "bfloat16_matmul.hpp"
#include "isa.hpp"
#include "threads.hpp"

namespace ivl {
namespace {

// Weight rows [first, last) on this thread.
void run(const FloatKernels& of_isa, const FloatTask& task, int64_t first, int64_t last) {
  static thread_local Buffer scratch;
  scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(task.num_rows)));
  of_isa.multiply(task, first, last, scratch.data());
}

}  // namespace

void float_matmul(const FloatProduct& product) {
  const FloatKernels& of_isa = kernels().floats;
  const int64_t num_rows = product.num_rows, columns = product.columns;
  if (num_rows == 0 || product.rows == 0) return;
  // Rows that are bfloat16 already lose nothing.
  if (product.weights_dtype == Dtype::bfloat16 && product.x_dtype == Dtype::bfloat16 &&
      columns > 0 && bfloat16_matmul(product)) {
    return;
  }
  static thread_local Buffer memory;
  memory.reserve(static_cast<size_t>(4 * of_isa.prepared_size(num_rows, columns) + 64));
  float* x = memory.as<float>();
  const auto prepare = [&](int64_t part) {
    of_isa.prepare(product.x, product.x_dtype, num_rows, columns, part, x);
  };
  const int64_t preparations = of_isa.num_preparations(num_rows);
  if (num_rows <= FloatRows::kTileRows) {
    for (int64_t part = 0; part < preparations; ++part) prepare(part);
  } else {
    parallel_for(preparations, prepare);
  }
  const FloatTask task = {product.weights, product.weights_dtype, product.rows,
                          columns, x, num_rows, product.bias, product.out,
                          product.out_dtype, product.rows, false};
  const int64_t step = of_isa.task_rows;
  parallel_for((product.rows + step - 1) / step, [&](int64_t part) {
    const int64_t first = part * step, last = first + step;
    run(of_isa, task, first, last < product.rows ? last : product.rows);
  });
}

void FloatRows::resize(int64_t num_rows, int64_t columns) {
  num_rows_ = num_rows;
  columns_ = columns;
  kernels_ = &ivl::kernels().floats;
  memory_.reserve(static_cast<size_t>(4 * kernels_->prepared_size(num_rows, columns) + 64));
}

void FloatRows::fill(const float* x, int64_t tile) {
  const FloatKernels& of_isa = *kernels_;
  const int64_t all = of_isa.num_preparations(num_rows_), each = kTileRows / of_isa.part_rows;
  for (int64_t part = tile * each; part < (tile + 1) * each && part < all; ++part) {
    of_isa.prepare(x, Dtype::float32, num_rows_, columns_, part,
                   memory_.as<float>());
  }
}

void float_matmul_outputs(const void* weights, Dtype dtype, int64_t rows, const float* bias,
                          const FloatRows& x, int64_t first, int64_t last, float* out,
                          int64_t out_stride, bool add) {
  run(x.kernels(),
      {weights, dtype, rows, x.columns(), x.data(), x.num_rows(), bias,
       out - first, Dtype::float32, out_stride, add},
      first, last < rows ? last : rows);
}

}  // namespace ivl
