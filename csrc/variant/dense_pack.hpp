// What each instruction set offers to bring dense weights into panels (csrc/dense.hpp).
#pragma once

#include <cstdint>

namespace ivl {

struct DensePack {
  const void* weight;  // (rows, columns), without gaps
  int dtype;           // as in GGUF files: 0 float32, 1 float16, 30 bfloat16
  int64_t rows, columns;
  bool as_int8;        // else float16
  int64_t stride;      // columns of the panels
  float float16_most;  // rows with larger magnitudes are scaled down to it
  void* panels;
  float* scales;       // (rows,): weight = scale * value
};

struct DensePackKernels {
  int64_t (*scratch_bytes)(const DensePack& pack);
  void (*pack)(const DensePack& pack, int64_t panel, uint8_t* scratch);
};

namespace portable { extern const DensePackKernels dense_pack_kernels; }
namespace avx2 { extern const DensePackKernels dense_pack_kernels; }
namespace avx512 { extern const DensePackKernels dense_pack_kernels; }
namespace neon { extern const DensePackKernels dense_pack_kernels; }

}  // namespace ivl
