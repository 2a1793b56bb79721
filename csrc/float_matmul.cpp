#include "float_matmul.hpp"

#include "isa.hpp"
#include "threads.hpp"
#include "variant/float_matmul.hpp"

namespace ivl {
namespace {

const FloatKernels& kernels() {
  switch (current_isa()) {
#if defined(IVL_HAS_AVX512)
    case Isa::avx512: return avx512::float_kernels;
#endif
#if defined(IVL_HAS_AVX2)
    case Isa::avx2: return avx2::float_kernels;
#endif
#if defined(IVL_HAS_NEON)
    case Isa::neon: return neon::float_kernels;
#endif
    default: return portable::float_kernels;
  }
}

}  // namespace

void float_matmul(const FloatProduct& product) {
  const FloatKernels& of_isa = kernels();
  const int64_t num_rows = product.num_rows, columns = product.columns;
  if (num_rows == 0 || product.rows == 0) return;
  static thread_local Buffer memory;
  memory.reserve(static_cast<size_t>(4 * of_isa.prepared_size(num_rows, columns) + 64));
  float* x = memory.as<float>();
  const auto prepare = [&](int64_t part) {
    of_isa.prepare(product.x, static_cast<int>(product.x_dtype), num_rows, columns, part, x);
  };
  const int64_t preparations = of_isa.num_preparations(num_rows);
  if (preparations == 1) {
    prepare(0);
  } else {
    parallel_for(preparations, prepare);
  }
  const FloatTask task = {product.weights, static_cast<int>(product.weights_dtype), product.rows,
                          columns, x, num_rows, product.bias, product.out,
                          static_cast<int>(product.out_dtype)};
  const int64_t step = of_isa.task_rows;
  parallel_for((product.rows + step - 1) / step, [&](int64_t part) {
    static thread_local Buffer scratch;
    scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(num_rows)));
    const int64_t first = part * step, last = first + step;
    of_isa.multiply(task, first, last < product.rows ? last : product.rows, scratch.data());
  });
}

}  // namespace ivl
