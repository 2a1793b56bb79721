// What a decoder does between its products.
#include "kernels.hpp"

#include <cmath>

#include "vector_math.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

void rms_norm(const float* x, const float* weight, float eps, int64_t width, float* out) {
  const float squares = sum_lanes(width, [&](int64_t i) { return x[i] * x[i]; });
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; ++i) out[i] = weight[i] * (x[i] * inverse);
}

void swiglu(float* gate, const float* up, int64_t rows, int64_t width, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row) {
    float* x = gate + row * stride;
    const float* y = up + row * stride;
    for (int64_t i = 0; i < width; ++i) x[i] = x[i] / (1.0f + fast_exp(-x[i])) * y[i];
  }
}

}  // namespace

const PointwiseKernels pointwise_kernels = {rms_norm, swiglu};

}  // namespace IVL_VARIANT
}  // namespace ivl
