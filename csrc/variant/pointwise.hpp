// What each instruction set offers to csrc/decoder.cpp between the products. Plain pointers only.
#pragma once

#include <cstdint>

namespace ivl {

struct PointwiseKernels {
  // out = x / rms(x) * weight, for one row.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t width, float* out);
  // gate = silu(gate) * up, for (rows, width) numbers, rows `stride` apart in both.
  void (*swiglu)(float* gate, const float* up, int64_t rows, int64_t width, int64_t stride);
};

namespace portable { extern const PointwiseKernels pointwise_kernels; }
namespace avx2 { extern const PointwiseKernels pointwise_kernels; }
namespace avx512 { extern const PointwiseKernels pointwise_kernels; }
namespace neon { extern const PointwiseKernels pointwise_kernels; }

}  // namespace ivl
