// Dense weights to panels: rows are rounded one by one, then turned into columns of 4-byte units.
#include "kernels.hpp"

#include "numbers.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

bool as_int8(const DensePack& p) { return p.type == Dense::int8; }

// Sixteen numbers of a row from column `at` on, zeros beyond its end.
Floats load_columns(const DensePack& p, int64_t row, int64_t at) {
  const uint8_t* numbers = static_cast<const uint8_t*>(p.weight);
  return load_numbers(numbers + (row * p.columns + at) * bytes_of(p.dtype), p.dtype, p.columns - at);
}

// One row in the type of the product, (stride,), and its scale.
void round_row(const DensePack& p, int64_t row, uint8_t* out) {
  Floats magnitudes = zeros();
  for (int64_t at = 0; at < p.columns; at += 16) {
    magnitudes = maximum(magnitudes, magnitude(load_columns(p, row, at)));
  }
  const float most = largest(magnitudes);
  float scale = 1.0f;
  if (as_int8(p) && most > 0.0f) scale = most / 127.0f;
  if (p.type == Dense::float16 && most > kFloat16Most) scale = most / kFloat16Most;
  p.scales[row] = scale;
  const Floats inverse = splat(1.0f / scale);
  for (int64_t at = 0; at < p.stride; at += 16) {
    Floats x = load_columns(p, row, at);
    if (scale != 1.0f) x = multiply(x, inverse);
    if (as_int8(p)) {
      to_int8(reinterpret_cast<int8_t*>(out) + at, x);
    } else if (p.type == Dense::bfloat16) {
      to_bfloat16(out + 2 * at, x);
    } else {
      to_float16(out + 2 * at, x);
    }
  }
  // Products of bytes take unsigned weights: 128 more.
  if (as_int8(p)) {
    for (int64_t at = 0; at < p.stride; ++at) out[at] ^= 0x80;
  }
}

int64_t scratch_bytes(const DensePack& p) {
  return kPanel * p.stride * (as_int8(p) ? 1 : 2);
}

void pack(const DensePack& p, int64_t panel, uint8_t* scratch) {
  const int64_t line = p.stride * (as_int8(p) ? 1 : 2), units = line / 4;
  const int64_t first = panel * kPanel, left = p.rows - first;
  const int64_t rows = left < kPanel ? left : kPanel;
  memset(scratch + rows * line, as_int8(p) ? 0x80 : 0,
         static_cast<size_t>((kPanel - rows) * line));
  for (int64_t row = 0; row < rows; ++row) round_row(p, first + row, scratch + row * line);
  float* out = reinterpret_cast<float*>(static_cast<uint8_t*>(p.panels) +
                                        panel * kPanel * line);
  for (int64_t half = 0; half < kPanel; half += 16) {
    for (int64_t unit = 0; unit < units; unit += 16) {
      Floats square[16];
      for (int64_t i = 0; i < 16; ++i) {
        square[i] = load_floats(reinterpret_cast<const float*>(scratch + (half + i) * line) + unit);
      }
      transpose(square);
      for (int64_t i = 0; i < 16; ++i) {
        store_floats(out + (unit + i) * kPanel + half, square[i]);
      }
    }
  }
}

}  // namespace

const DensePackKernels dense_pack_kernels = {scratch_bytes, pack};

}  // namespace IVL_VARIANT
}  // namespace ivl
