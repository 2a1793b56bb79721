// What each instruction set offers to csrc/bind_limits.cpp.
#pragma once

#include <cstdint>

namespace ivl {

struct LimitKernels {
  uint64_t (*read_all)(const uint8_t* data, int64_t num_bytes);
  int64_t (*operations_per_round)();
  float (*multiply_bytes)(int64_t rounds);
};

namespace portable { extern const LimitKernels limit_kernels; }
namespace avx2 { extern const LimitKernels limit_kernels; }
namespace avx512 { extern const LimitKernels limit_kernels; }
namespace neon { extern const LimitKernels limit_kernels; }

}  // namespace ivl
