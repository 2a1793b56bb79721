// What each instruction set offers to csrc/packing.cpp. Plain pointers only.
#pragma once

#include <cstdint>

namespace ivl {

struct PackKernels {
  // Brings the levels of 16 rows, `row_bytes` apart from `blocks` on, to their planes: all of a
  // panel but its scales. The format is kLayouts[index].
  void (*pack_levels)(int index, const uint8_t* blocks, int64_t row_bytes, int64_t num_blocks,
                      uint8_t* planes);
};

namespace portable { extern const PackKernels pack_kernels; }
namespace avx2 { extern const PackKernels pack_kernels; }
namespace avx512 { extern const PackKernels pack_kernels; }
namespace neon { extern const PackKernels pack_kernels; }

}  // namespace ivl
