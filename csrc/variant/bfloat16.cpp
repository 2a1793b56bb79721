// Products with weights of bfloat16, by AVX-512 BF16; docs/kernels.md tells of them.
#include "bfloat16_tile.hpp"
#include "kernels.hpp"
#include "numbers.hpp"
#include "plain_products.hpp"

namespace ivl {
namespace IVL_VARIANT {

#if defined(IVL_HAS_BFLOAT16_TILES)
namespace {

constexpr int64_t kSlice = 1024;  // columns whose panel of 64 KB stays in the second cache

// 32 weights of a row from column `at` on, zeros beyond its end.
IVL_INLINE Floats load_pairs(const uint16_t* row, int64_t at, int64_t columns) {
  if (at + 32 <= columns) return load_floats(reinterpret_cast<const float*>(row + at));
  alignas(64) uint16_t whole[32] = {};
  if (at < columns) memcpy(whole, row + at, static_cast<size_t>(2 * (columns - at)));
  return load_floats(reinterpret_cast<const float*>(whole));
}

// 32 rows of weights from `row` on, columns [from, from + count), to (count / 2, 32) pairs.
void pack_panel(const FloatTask& task, int64_t row, int64_t from, int64_t count, float* panel) {
  const uint16_t* weights = static_cast<const uint16_t*>(task.weights);
  for (int64_t half = 0; half < kPanel; half += 16) {
    for (int64_t k = 0; k < count; k += 32) {
      Floats square[16];
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t at = row + half + i;
        const uint16_t* place = weights + at * task.columns;
        prefetch(place + 16 * task.columns + from + k);  // of the next square of rows
        square[i] = at < task.rows ? load_pairs(place, from + k, task.columns) : zeros();
      }
      transpose(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        store_floats(panel + (k / 2 + i) * kPanel + half, square[i]);
      }
    }
  }
}

int64_t padded(int64_t columns) { return (columns + 31) / 32 * 32; }

// Filled up to whole vectors, and one more, so that rows do not all fall into the same sets of the
// first cache.
int64_t row_stride(int64_t columns) { return padded(columns) + 32; }

void round(const void* x, Dtype dtype, int64_t row_stride_of_x, int64_t columns, int64_t first,
           int64_t count, int64_t first_row, int64_t last_row, uint16_t* rows) {
  const int64_t stride = row_stride(columns), size = bytes_of(dtype);
  const int64_t end = first + count == columns ? padded(columns) - first : count;
  for (int64_t row = first_row; row < last_row; ++row) {
    const uint8_t* from = static_cast<const uint8_t*>(x) + row * row_stride_of_x * size;
    if (dtype == Dtype::float32) {
      round_to_bfloat16(reinterpret_cast<const float*>(from), rows + row * stride + first, count);
      memset(rows + row * stride + first + count, 0, static_cast<size_t>(2 * (end - count)));
      continue;
    }
    for (int64_t k = 0; k < end; k += 16) {
      to_bfloat16(rows + row * stride + first + k, load_numbers(from + k * size, dtype, count - k));
    }
  }
}

int64_t scratch_bytes(int64_t num_rows, int64_t columns) {
  const int64_t slice = padded(columns) < kSlice ? padded(columns) : kSlice;
  return 4 * kPanel * (slice / 2 + num_rows);
}

void multiply(const FloatTask& task, int64_t first, int64_t last, uint8_t* scratch) {
  const int64_t columns = padded(task.columns), stride = row_stride(task.columns);
  const int64_t slice = columns < kSlice ? columns : kSlice;
  const uint16_t* x = static_cast<const uint16_t*>(task.x);
  float* panel = reinterpret_cast<float*>(scratch);
  float* sums = panel + kPanel * slice / 2;
  // Tiles of one height: a small one at the end would wait for its own sums.
  const int64_t tiles = (task.num_rows + kTileRows - 1) / kTileRows;
  for (int64_t output = first; output < last; output += kPanel) {
    for (int64_t from = 0; from < columns; from += slice) {
      const int64_t count = columns - from < slice ? columns - from : slice;
      pack_panel(task, output, from, count, panel);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = tile * task.num_rows / tiles, end = (tile + 1) * task.num_rows / tiles;
        bfloat16_tile(static_cast<int>(end - row), x + row * stride + from, stride,
                      reinterpret_cast<const uint16_t*>(panel), count / 2, sums + row * kPanel,
                      kPanel, from > 0);
      }
    }
    write_panel<kPanel>(task, output, sums);
  }
}

// --- few rows: weights are read as they lie in memory; a sum is kept in 16 parts ---

template <int W, int R>
__attribute__((target("avx512bf16"))) void multiply_rows(const FloatTask& task, int64_t weight_row,
                                                         int64_t row) {
  const int64_t columns = task.columns, stride = row_stride(columns);
  const uint16_t* weights = static_cast<const uint16_t*>(task.weights) + weight_row * columns;
  const uint16_t* x = static_cast<const uint16_t*>(task.x) + row * stride;
  // Every loop over the sums is unrolled, or they would live in memory.
  __m512 acc[W][R];
#pragma GCC unroll 4
  for (int i = 0; i < W; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[i][r] = _mm512_setzero_ps();
  }
  const auto add_columns = [&](int64_t k, __mmask32 some)
                               __attribute__((target("avx512bf16"), always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) {
      const uint16_t* place = weights + i * columns + k;
      prefetch(place + kPrefetchBytes / 2);
      const __m512bh w = (__m512bh)_mm512_maskz_loadu_epi16(some, place);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512bh v = (__m512bh)_mm512_loadu_si512(x + r * stride + k);
        acc[i][r] = _mm512_dpbf16_ps(acc[i][r], w, v);
      }
    }
  };
  int64_t k = 0;
  for (; k + 32 <= columns; k += 32) add_columns(k, ~__mmask32{0});
  if (k < columns) add_columns(k, (__mmask32{1} << (columns - k)) - 1);
  write_block(task, weight_row, row, acc);
}

// All rows times W weight rows.
template <int W>
void multiply_group(const FloatTask& task, int64_t weight_row) {
  const int64_t end = task.num_rows;
  int64_t row = 0;
  for (; row + 4 <= end; row += 4) multiply_rows<W, 4>(task, weight_row, row);
  for (; row + 2 <= end; row += 2) multiply_rows<W, 2>(task, weight_row, row);
  if (row < end) multiply_rows<W, 1>(task, weight_row, row);
}

void multiply_few(const FloatTask& task, int64_t first, int64_t last) {
  int64_t weight_row = first;
  for (; weight_row + 4 <= last; weight_row += 4) multiply_group<4>(task, weight_row);
  for (; weight_row < last; ++weight_row) multiply_group<1>(task, weight_row);
}

}  // namespace

const Bfloat16Kernels bfloat16_kernels = {row_stride, round, scratch_bytes, multiply, multiply_few};
#else
const Bfloat16Kernels bfloat16_kernels = {nullptr, nullptr, nullptr, nullptr, nullptr};
#endif

}  // namespace IVL_VARIANT
}  // namespace ivl
