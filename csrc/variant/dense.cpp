// Dense products of 8 and 16 bits; dense.hpp has the layouts.
#include <cmath>
#include <cstring>

#include "bfloat16_tile.hpp"
#include "float16_tile.hpp"
#include "kernels.hpp"
#include "vector_math.hpp"
#if defined(__AVX2__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

namespace ivl {
namespace IVL_VARIANT {
namespace {

#if defined(IVL_HAS_FLOAT16_TILES)
// The largest magnitude of a row of float16 activations. With kFloat16Most for weights, a sum of 32
// products is at most 51200, within the type's 65504.
constexpr float kFloat16Activation = 16.0f;
#endif

// out = (x - mean) * factor * weight + bias, the statistics in float32.
void normed(const float* x, int64_t width, const NormArgs& norm, float* out) {
  if (norm.kind == Norm::none) {
    std::memcpy(out, x, sizeof(float) * static_cast<size_t>(width));
    return;
  }
  const float count = static_cast<float>(width);
  float mean = 0;
  if (norm.kind == Norm::layer) mean = sum_lanes(width, [&](int64_t i) { return x[i]; }) / count;
  const float variance = sum_lanes(width, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  const float factor = 1.0f / std::sqrt(variance / count + norm.eps);
  if (norm.bias) {
    for (int64_t i = 0; i < width; ++i) {
      out[i] = (x[i] - mean) * factor * norm.weight[i] + norm.bias[i];
    }
  } else {
    for (int64_t i = 0; i < width; ++i) out[i] = (x[i] - mean) * factor * norm.weight[i];
  }
}

void to_int8(const float* x, int64_t width, int8_t* out, float* scale, int32_t* sum) {
  const float most = max_lanes(width, 0.0f, [&](int64_t i) { return std::fabs(x[i]); });
  *scale = most / 127.0f;
  const float factor = most > 0 ? 127.0f / most : 0.0f;
  int32_t total = 0;
  for (int64_t i = 0; i < width; ++i) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest.
    const float rounded = (x[i] * factor + 12582912.0f) - 12582912.0f;
    const int32_t value = static_cast<int32_t>(rounded);
    out[i] = static_cast<int8_t>(value);
    total += value;
  }
  *sum = total;
}

void prepare(Dense type, const float* x, int64_t width, int64_t first, int64_t num_rows,
             const NormArgs& norm, const DenseRows& rows) {
  static thread_local Scratch<float> scratch;
  float* row = scratch.of(rows.stride);
  std::memset(row + width, 0, sizeof(float) * static_cast<size_t>(rows.stride - width));
  for (int64_t r = first; r < first + num_rows; ++r) {
    normed(x + r * width, width, norm, row);
    if (type == Dense::int8) {
      int8_t* out = static_cast<int8_t*>(rows.values) + r * rows.stride;
      to_int8(row, width, out, rows.scales + r, rows.sums + r);
      std::memset(out + width, 0, static_cast<size_t>(rows.stride - width));
      continue;
    }
#if defined(IVL_HAS_BFLOAT16_TILES)
    if (type == Dense::bfloat16) {
      round_to_bfloat16(row, static_cast<uint16_t*>(rows.values) + r * rows.stride, rows.stride);
      rows.scales[r] = 1.0f;
      continue;
    }
#endif
#if defined(IVL_HAS_FLOAT16_TILES)
    const float most = max_lanes(width, 0.0f, [&](int64_t i) { return std::fabs(row[i]); });
    rows.scales[r] = most / kFloat16Activation;
    to_float16(row, most > 0 ? kFloat16Activation / most : 0.0f,
               static_cast<uint16_t*>(rows.values) + r * rows.stride, rows.stride);
#endif
  }
}

// sums (kRows, 32) int32 of a (kRows, 4 * units) int8 times one panel of weights plus 128.
template <int kRows>
void int8_tile(const int8_t* a, int64_t stride, const uint8_t* panel, int64_t units, int32_t* out) {
#if defined(__AVX512VNNI__)
  __m512i sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
  for (int64_t u = 0; u < units; ++u) {
    const __m512i w0 = _mm512_loadu_si512(panel + u * 4 * kPanel);
    const __m512i w1 = _mm512_loadu_si512(panel + u * 4 * kPanel + 64);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int four;
      std::memcpy(&four, a + r * stride + 4 * u, sizeof four);
      const __m512i x = _mm512_set1_epi32(four);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], w0, x);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], w1, x);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_si512(out + r * kPanel, sums[r][0]);
    _mm512_storeu_si512(out + r * kPanel + 16, sums[r][1]);
  }
#elif defined(__AVX2__)
  // Without VNNI: bytes are widened to int16, whose pairs are multiplied and added exactly.
  for (int r = 0; r < kRows; ++r) {
    for (int part = 0; part < kPanel; part += 8) {
      __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
      for (int64_t u = 0; u < units; ++u) {
        int four;
        std::memcpy(&four, a + r * stride + 4 * u, sizeof four);
        const __m256i x = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
        const uint8_t* w = panel + (u * kPanel + part) * 4;
        const __m256i w0 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)w));
        const __m256i w1 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(w + 16)));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(w0, x));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(w1, x));
      }
      const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8);
      _mm256_storeu_si256((__m256i*)(out + r * kPanel + part), sums);
    }
  }
#else
  for (int r = 0; r < kRows; ++r) {
    int32_t sums[kPanel] = {};
    for (int64_t u = 0; u < units; ++u) {
      const int8_t* x = a + r * stride + 4 * u;
      const uint8_t* w = panel + u * 4 * kPanel;
      for (int c = 0; c < kPanel; ++c) {
        sums[c] += w[4 * c] * x[0] + w[4 * c + 1] * x[1] + w[4 * c + 2] * x[2] + w[4 * c + 3] * x[3];
      }
    }
    std::memcpy(out + r * kPanel, sums, sizeof sums);
  }
#endif
}

void int8_tile(int rows, const int8_t* a, int64_t stride, const uint8_t* panel, int64_t units,
               int32_t* out) {
  // What is left after whole tiles goes in steps that need few versions of the code.
  while (rows > 0) {
    int step;
    if (rows >= 12) {
      int8_tile<12>(a, stride, panel, units, out), step = 12;
    } else if (rows >= 5) {
      int8_tile<5>(a, stride, panel, units, out), step = 5;
    } else if (rows >= 2) {
      int8_tile<2>(a, stride, panel, units, out), step = 2;
    } else {
      int8_tile<1>(a, stride, panel, units, out), step = 1;
    }
    rows -= step, a += step * stride, out += step * kPanel;
  }
}

// Scales, bias, and what follows; `y` has the raw sums of one row and panel.
inline __attribute__((always_inline)) void finish_columns(const DenseProduct& p, int64_t row,
                                                          int64_t column, int count,
                                                          float* __restrict y) {
  const float scale = p.rows.scales[row];
  if (p.weight_scales) {
    for (int c = 0; c < count; ++c) y[c] *= scale * p.weight_scales[column + c];
  } else {
    for (int c = 0; c < count; ++c) y[c] *= scale;
  }
  if (p.bias) {
    for (int c = 0; c < count; ++c) y[c] += p.bias[column + c];
  }
  float* __restrict out = p.out + row * p.outputs + column;
  switch (p.epilogue) {
    case Epilogue::store:
      for (int c = 0; c < count; ++c) out[c] = y[c];
      break;
    case Epilogue::gelu:
      for (int c = 0; c < count; ++c) out[c] = gelu(y[c]);
      break;
    case Epilogue::add_scaled:
      for (int c = 0; c < count; ++c) out[c] += p.channel_scales[column + c] * y[c];
      break;
  }
}

void finish(const DenseProduct& p, int64_t row, int64_t column, int count, float* y) {
  // A whole panel, whose length the compiler knows, takes half the time.
  if (count == kPanel) {
    finish_columns(p, row, column, kPanel, y);
  } else {
    finish_columns(p, row, column, count, y);
  }
}

void multiply(const DenseProduct& p, int64_t row, int64_t num_rows, int64_t panel,
              int64_t num_panels) {
  alignas(64) float y[kTileRows * kPanel];
  alignas(64) int32_t sums[kTileRows * kPanel];
  const int64_t columns = p.rows.stride;
  for (int64_t r = row; r < row + num_rows; r += kTileRows) {
    const int rows = static_cast<int>(row + num_rows - r < kTileRows ? row + num_rows - r : kTileRows);
    for (int64_t n = panel; n < panel + num_panels; ++n) {
      if (p.type == Dense::int8) {
        const uint8_t* weights = static_cast<const uint8_t*>(p.panels) + n * kPanel * columns;
        int8_tile(rows, static_cast<const int8_t*>(p.rows.values) + r * columns, columns, weights,
                  columns / 4, sums);
        for (int i = 0; i < rows; ++i) {
          const int32_t offset = 128 * p.rows.sums[r + i];
          for (int c = 0; c < kPanel; ++c) {
            y[i * kPanel + c] = static_cast<float>(sums[i * kPanel + c] - offset);
          }
        }
      } else if (p.type == Dense::bfloat16) {
#if defined(IVL_HAS_BFLOAT16_TILES)
        const uint16_t* weights = static_cast<const uint16_t*>(p.panels) + n * kPanel * columns;
        bfloat16_tile(rows, static_cast<const uint16_t*>(p.rows.values) + r * columns, columns,
                      weights, columns / 2, y);
#endif
      } else {
#if defined(IVL_HAS_FLOAT16_TILES)
        const uint16_t* weights = static_cast<const uint16_t*>(p.panels) + n * kPanel * columns;
        float16_tile(rows, static_cast<const uint16_t*>(p.rows.values) + r * columns, columns,
                     weights, columns / 2, y);
#endif
      }
      const int64_t left = p.outputs - n * kPanel;
      const int count = static_cast<int>(left < kPanel ? left : kPanel);
      for (int i = 0; i < rows; ++i) finish(p, r + i, n * kPanel, count, y + i * kPanel);
    }
  }
}

}  // namespace

const DenseKernels dense_kernels = {prepare, multiply};

}  // namespace IVL_VARIANT
}  // namespace ivl
