// What each instruction set offers to csrc/matmul.cpp. Plain pointers only: this header is compiled
// with and without the flags of an instruction set.
#pragma once

#include <cstdint>

namespace ivl {

// The activations of ivl::QuantizedRows.
struct RowsView {
  const int8_t* values;
  const float* scales;
  const float* weighted_sums;
  const int32_t* half_sums;
  int64_t num_rows, columns;
};

// One product, for the panels [first_panel, last_panel) of 16 rows of the matrix.
struct PanelTask {
  const uint8_t* packed;
  int type_id;
  int64_t rows, columns;
  int64_t first_panel, last_panel;
  const float* bias;
  void* out;
  int out_dtype;
  int64_t out_stride;
  bool add;  // to what is in `out`, which is float32 then
};

struct MatmulKernels {
  // Quantizes groups [first_group, last_group) of rows [first_row, last_row), which must be whole
  // tiles, into their places. x points to the first of these groups in row 0.
  void (*quantize)(const void* x, int dtype, int64_t row_stride, int64_t first_row,
                   int64_t last_row, int64_t num_rows, int64_t first_group, int64_t last_group,
                   int64_t num_groups, int8_t* values, float* scales, float* weighted_sums,
                   int32_t* half_sums);
  // Bytes that `matmul` needs beside, aligned to a cache line.
  int64_t (*scratch_bytes)(int64_t num_rows, int64_t columns);
  void (*matmul)(const PanelTask& task, const RowsView& rows, uint8_t* scratch);
};

namespace portable { extern const MatmulKernels matmul_kernels; }
namespace avx2 { extern const MatmulKernels matmul_kernels; }
namespace avx512 { extern const MatmulKernels matmul_kernels; }
namespace neon { extern const MatmulKernels matmul_kernels; }

}  // namespace ivl
