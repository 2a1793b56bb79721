// What each instruction set offers to csrc/float_matmul.cpp. Plain pointers only, as in matmul.hpp.
#pragma once

#include <cstdint>

namespace ivl {

struct FloatTask {
  const void* weights;
  int weights_dtype;
  int64_t rows, columns;
  const float* x;  // as `prepare` left it
  int64_t num_rows;
  const float* bias;
  void* out;
  int out_dtype;
  int64_t out_stride;  // numbers from one row of out to the next
  bool add;            // to what is in `out`, which is float32 then
};

struct FloatKernels {
  // Up to so many rows of x it is better to read the weights once than to widen them.
  int64_t few_rows;
  // Weight rows of one task.
  int64_t task_rows;
  // Rows of x in one part of the preparation, where there are more than few; it divides 12.
  int64_t part_rows;
  // float32 numbers that x takes when it is prepared.
  int64_t (*prepared_size)(int64_t num_rows, int64_t columns);
  // Parts of the preparation that may run at the same time, and one of them.
  int64_t (*num_preparations)(int64_t num_rows);
  void (*prepare)(const void* x, int dtype, int64_t num_rows, int64_t columns, int64_t part,
                  float* prepared);
  int64_t (*scratch_bytes)(int64_t num_rows);
  // Weight rows [first, last), a multiple of 32 at first.
  void (*multiply)(const FloatTask& task, int64_t first, int64_t last, uint8_t* scratch);
};

namespace portable { extern const FloatKernels float_kernels; }
namespace avx2 { extern const FloatKernels float_kernels; }
namespace avx512 { extern const FloatKernels float_kernels; }
namespace neon { extern const FloatKernels float_kernels; }

}  // namespace ivl
