// Products with weights of 16 or 32 bits. docs/kernels.md explains the loops.
#include "kernels.hpp"

#include "numbers.hpp"
#include "plain_products.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

// A step of several answers is few rows too then.
constexpr int64_t kFewRows = kHolds16Sums ? 32 : 8;
// Up to so many rows all weights of a task are read before the next rows; beyond, four at a time.
constexpr int64_t kOuterRows = 8;
constexpr int64_t kTaskRows = 64;
constexpr int64_t kPanel = 16 * kFloatVectors;  // weight rows that are multiplied at once
constexpr int64_t kSlice = 512;                 // columns whose widened weights stay in a cache

// Numbers from one row of x to the next: filled up to whole vectors, and one more, so that rows do
// not all fall into the same set of the first cache.
IVL_INLINE int64_t row_stride(int64_t columns) { return (columns + 15) / 16 * 16 + 16; }

// --- few rows: x is (num_rows, columns padded with zeros); a sum is kept in 16 parts ---

template <Dtype DTYPE, int W, int R>
void multiply_rows(const FloatTask& task, int64_t weight_row, int64_t row) {
  constexpr int64_t size = bytes_of(DTYPE);
  const int64_t columns = task.columns, stride = row_stride(columns);
  const uint8_t* weights = static_cast<const uint8_t*>(task.weights) + weight_row * columns * size;
  const float* x = static_cast<const float*>(task.x) + row * stride;
  // Every loop over the sums is unrolled, or they would live in memory.
  Floats acc[W][R];
#pragma GCC unroll 4
  for (int i = 0; i < W; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[i][r] = zeros();
  }
  int64_t k = 0;
  for (; k + 16 <= columns; k += 16) {
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) {
      const uint8_t* place = weights + (i * columns + k) * size;
      prefetch(place + kPrefetchBytes);
      const Floats w = load_numbers<DTYPE>(place);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[i][r] = multiply_add(w, load_floats(x + r * stride + k), acc[i][r]);
      }
    }
  }
  if (k < columns) {
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) {
      const Floats w = load_numbers<DTYPE>(weights + (i * columns + k) * size, columns - k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[i][r] = multiply_add(w, load_floats(x + r * stride + k), acc[i][r]);
      }
    }
  }
  write_block(task, weight_row, row, acc);
}

// The rows from `row` on times four weight rows, or one.
template <Dtype DTYPE, int W, int R, int... SMALLER>
IVL_INLINE void multiply_group(const FloatTask& task, int64_t weight_row, int64_t row) {
  for (; row + R <= task.num_rows; row += R) multiply_rows<DTYPE, W, R>(task, weight_row, row);
  if constexpr (sizeof...(SMALLER) > 0) {
    multiply_group<DTYPE, W, SMALLER...>(task, weight_row, row);
  }
}

template <Dtype DTYPE>
void multiply_several(const FloatTask& task, int64_t first, int64_t last) {
  int64_t weight_row = first;
  for (; weight_row + 4 <= last; weight_row += 4) {
    multiply_group<DTYPE, 4, 4, 2, 1>(task, weight_row, 0);
  }
  for (; weight_row < last; ++weight_row) multiply_group<DTYPE, 1, 4, 2, 1>(task, weight_row, 0);
}

// Four rows of x at a time at most: more of them would not stay in the first cache. What the second
// time needs of the weights is in the second cache then.
template <Dtype DTYPE, int R, int... SMALLER>
IVL_INLINE void multiply_few(const FloatTask& task, int64_t first, int64_t last, int64_t row) {
  constexpr int W = 4;
  for (; row + R <= task.num_rows; row += R) {
    int64_t weight_row = first;
    for (; weight_row + W <= last; weight_row += W) {
      multiply_rows<DTYPE, W, R>(task, weight_row, row);
    }
    for (; weight_row < last; ++weight_row) multiply_rows<DTYPE, 1, R>(task, weight_row, row);
  }
  if constexpr (sizeof...(SMALLER) > 0) {
    multiply_few<DTYPE, SMALLER...>(task, first, last, row);
  }
}

// --- many rows: x is in tiles of kFloatRows rows, column by column ---

// kPanel rows of weights from `row` on, columns [from, from + count), to (count, kPanel).
template <Dtype DTYPE>
void widen(const FloatTask& task, int64_t row, int64_t from, int64_t count, float* panel) {
  constexpr int64_t size = bytes_of(DTYPE);
  const uint8_t* weights = static_cast<const uint8_t*>(task.weights);
  for (int64_t part = 0; part < kPanel; part += 16) {
    for (int64_t k = 0; k < count; k += 16) {
      const int64_t left = count - k, columns = left < 16 ? left : 16;
      Floats square[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t weight_row = row + part + i;
        const uint8_t* place = weights + (weight_row * task.columns + from + k) * size;
        square[i] = weight_row >= task.rows ? zeros()
                                            : load_numbers<DTYPE>(place, columns);
      }
      transpose(square);
      for (int64_t i = 0; i < columns; ++i) {
        store_floats(panel + (k + i) * kPanel + part, square[i]);
      }
    }
  }
}

// Adds one tile of x times a widened panel to the sums (kFloatRows, kPanel).
void multiply_tile(const float* x, const float* panel, int64_t count, float* sums) {
  Floats acc[kFloatRows][kFloatVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kFloatRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kFloatVectors; ++v) acc[r][v] = load_floats(sums + r * kPanel + 16 * v);
  }
  for (int64_t k = 0; k < count; ++k) {
    Floats w[kFloatVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kFloatVectors; ++v) w[v] = load_floats(panel + k * kPanel + 16 * v);
#pragma GCC unroll 12
    for (int r = 0; r < kFloatRows; ++r) {
      const Floats all = splat(x[k * kFloatRows + r]);
#pragma GCC unroll 2
      for (int v = 0; v < kFloatVectors; ++v) acc[r][v] = multiply_add(w[v], all, acc[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kFloatRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kFloatVectors; ++v) store_floats(sums + r * kPanel + 16 * v, acc[r][v]);
  }
}

template <Dtype DTYPE>
void multiply_many(const FloatTask& task, int64_t first, int64_t last, uint8_t* scratch) {
  float* panel = reinterpret_cast<float*>(scratch);
  float* sums = panel + kSlice * kPanel;
  const float* x = static_cast<const float*>(task.x);
  const int64_t tiles = (task.num_rows + kFloatRows - 1) / kFloatRows;
  for (int64_t row = first; row < last; row += kPanel) {
    memset(sums, 0, static_cast<size_t>(4 * tiles * kFloatRows * kPanel));
    for (int64_t from = 0; from < task.columns; from += kSlice) {
      const int64_t left = task.columns - from, count = left < kSlice ? left : kSlice;
      widen<DTYPE>(task, row, from, count, panel);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        multiply_tile(x + (tile * task.columns + from) * kFloatRows, panel, count,
                      sums + tile * kFloatRows * kPanel);
      }
    }
    write_panel<kPanel>(task, row, sums);
  }
}

template <Dtype DTYPE>
void multiply_of(const FloatTask& task, int64_t first, int64_t last, uint8_t* scratch) {
  if (task.num_rows <= kOuterRows) {
    multiply_few<DTYPE, 4, 2, 1>(task, first, last, 0);
  } else if (task.num_rows <= kFewRows) {
    multiply_several<DTYPE>(task, first, last);
  } else {
    multiply_many<DTYPE>(task, first, last, scratch);
  }
}

void multiply(const FloatTask& task, int64_t first, int64_t last, uint8_t* scratch) {
  switch (task.weights_dtype) {
    case Dtype::float32: return multiply_of<Dtype::float32>(task, first, last, scratch);
    case Dtype::float16: return multiply_of<Dtype::float16>(task, first, last, scratch);
    case Dtype::bfloat16: return multiply_of<Dtype::bfloat16>(task, first, last, scratch);
  }
}

IVL_INLINE Floats load_columns(const void* x, Dtype dtype, int64_t at, int64_t count) {
  return load_numbers(static_cast<const uint8_t*>(x) + at * bytes_of(dtype), dtype, count);
}

int64_t num_preparations(int64_t num_rows) {
  return (num_rows + kFloatRows - 1) / kFloatRows;
}

int64_t prepared_size(int64_t num_rows, int64_t columns) {
  if (num_rows <= kFewRows) return num_rows * row_stride(columns);
  return num_preparations(num_rows) * kFloatRows * columns;
}

void prepare(const void* x, Dtype dtype, int64_t num_rows, int64_t columns, int64_t part,
             float* prepared) {
  const int64_t stride = row_stride(columns);
  if (num_rows <= kFewRows) {
    const int64_t first = part * kFloatRows, end = first + kFloatRows;
    for (int64_t row = first; row < (end < num_rows ? end : num_rows); ++row) {
      for (int64_t k = 0; k < columns; k += 16) {
        const int64_t count = columns - k < 16 ? columns - k : 16;
        store_floats(prepared + row * stride + k, load_columns(x, dtype, row * columns + k, count));
      }
    }
    return;
  }
  float* tile = prepared + part * kFloatRows * columns;
  for (int64_t r = 0; r < kFloatRows; ++r) {
    const int64_t row = part * kFloatRows + r;
    for (int64_t k = 0; k < columns; k += 16) {
      const int64_t count = columns - k < 16 ? columns - k : 16;
      float numbers[16];
      store_floats(numbers,
                   row < num_rows ? load_columns(x, dtype, row * columns + k, count) : zeros());
      for (int64_t i = 0; i < count; ++i) tile[(k + i) * kFloatRows + r] = numbers[i];
    }
  }
}

int64_t scratch_bytes(int64_t num_rows) {
  if (num_rows <= kFewRows) return 0;
  return 4 * kPanel * (kSlice + num_preparations(num_rows) * kFloatRows);
}

}  // namespace

static_assert(12 % kFloatRows == 0, "preparations are grouped to tiles of 12 rows");

const FloatKernels float_kernels = {kTaskRows,        kFewRows, kFloatRows,    prepared_size,
                                    num_preparations, prepare,  scratch_bytes, multiply};

}  // namespace IVL_VARIANT
}  // namespace ivl
