// Dense weights to panels: rows are rounded one by one, then turned into columns of 4-byte units.
#include "dense_pack.hpp"

#include "simd.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

constexpr int64_t kPanelOutputs = 32;  // ivl::kPanel

// Sixteen numbers of a row from column `at` on, zeros beyond its end.
Floats load_numbers(const DensePack& p, int64_t row, int64_t at) {
  const int64_t size = p.dtype == 0 ? 4 : 2, left = p.columns - at;
  const uint8_t* place = static_cast<const uint8_t*>(p.weight) + (row * p.columns + at) * size;
  alignas(64) uint8_t part[64] = {};
  if (left < 16) {
    if (left > 0) memcpy(part, place, static_cast<size_t>(left * size));
    place = part;
  }
  if (p.dtype == 1) return from_float16(place);
  if (p.dtype == 30) return from_bfloat16(place);
  return load_floats(reinterpret_cast<const float*>(place));
}

// One row in the type of the product, (stride,), and its scale.
void round_row(const DensePack& p, int64_t row, uint8_t* out) {
  Floats magnitudes = zeros();
  for (int64_t at = 0; at < p.columns; at += 16) {
    magnitudes = maximum(magnitudes, magnitude(load_numbers(p, row, at)));
  }
  const float most = largest(magnitudes);
  float scale = 1.0f;
  if (p.as_int8 && most > 0.0f) scale = most / 127.0f;
  if (!p.as_int8 && most > p.float16_most) scale = most / p.float16_most;
  p.scales[row] = scale;
  const Floats inverse = splat(1.0f / scale);
  for (int64_t at = 0; at < p.stride; at += 16) {
    Floats x = load_numbers(p, row, at);
    if (scale != 1.0f) x = multiply(x, inverse);
    if (p.as_int8) {
      to_int8(reinterpret_cast<int8_t*>(out) + at, x);
    } else {
      to_float16(out + 2 * at, x);
    }
  }
  // Products of bytes take unsigned weights: 128 more.
  if (p.as_int8) {
    for (int64_t at = 0; at < p.stride; ++at) out[at] ^= 0x80;
  }
}

int64_t scratch_bytes(const DensePack& p) {
  return kPanelOutputs * p.stride * (p.as_int8 ? 1 : 2);
}

void pack(const DensePack& p, int64_t panel, uint8_t* scratch) {
  const int64_t line = p.stride * (p.as_int8 ? 1 : 2), units = line / 4;
  const int64_t first = panel * kPanelOutputs, left = p.rows - first;
  const int64_t rows = left < kPanelOutputs ? left : kPanelOutputs;
  memset(scratch + rows * line, p.as_int8 ? 0x80 : 0,
         static_cast<size_t>((kPanelOutputs - rows) * line));
  for (int64_t row = 0; row < rows; ++row) round_row(p, first + row, scratch + row * line);
  float* out = reinterpret_cast<float*>(static_cast<uint8_t*>(p.panels) +
                                        panel * kPanelOutputs * line);
  for (int64_t half = 0; half < kPanelOutputs; half += 16) {
    for (int64_t unit = 0; unit < units; unit += 16) {
      Floats square[16];
      for (int64_t i = 0; i < 16; ++i) {
        square[i] = load_floats(reinterpret_cast<const float*>(scratch + (half + i) * line) + unit);
      }
      transpose(square);
      for (int64_t i = 0; i < 16; ++i) {
        store_floats(out + (unit + i) * kPanelOutputs + half, square[i]);
      }
    }
  }
}

}  // namespace

const DensePackKernels dense_pack_kernels = {scratch_bytes, pack};

}  // namespace IVL_VARIANT
}  // namespace ivl
