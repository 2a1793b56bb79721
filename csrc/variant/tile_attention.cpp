// The vision tower's attention, by tiles of 16-bit numbers.
//
// Twelve queries are taken at once: their scores against all keys, a softmax, and the product with
// all values. Scores of 12 queries fit into the second-level cache; a matrix of all queries by all
// keys is never there. Keys and values are laid out as panels first (dense.hpp): a panel of keys has
// 32 keys as its outputs, a panel of values 32 channels.
#include <cmath>

#include "bfloat16_tile.hpp"
#include "float16_tile.hpp"
#include "kernels.hpp"
#include "numbers.hpp"
#include "vector_math.hpp"

namespace ivl {
namespace IVL_VARIANT {

#if defined(IVL_HAS_FLOAT16_TILES) || defined(IVL_HAS_BFLOAT16_TILES)
namespace {

#if defined(IVL_HAS_FLOAT16_TILES)
struct Float16 {
  static void round(const float* x, uint16_t* out, int64_t count) {
    to_float16(x, 1.0f, out, count);
  }
  static void multiply_tile(int rows, const uint16_t* a, int64_t stride, const uint16_t* panel,
                            int64_t units, float* out, int64_t out_stride) {
    alignas(64) float y[kTileRows * kPanel];
    float16_tile(rows, a, stride, panel, units, y);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < kPanel; ++c) out[r * out_stride + c] = y[r * kPanel + c];
    }
  }
};
#endif
#if defined(IVL_HAS_BFLOAT16_TILES)
struct Bfloat16 {
  static void round(const float* x, uint16_t* out, int64_t count) {
    round_to_bfloat16(x, out, count);
  }
  static void multiply_tile(int rows, const uint16_t* a, int64_t stride, const uint16_t* panel,
                            int64_t units, float* out, int64_t out_stride) {
    bfloat16_tile(rows, a, stride, panel, units, out, out_stride);
  }
};
#endif

// 32 keys from `position` on: their pairs of channels, turned to the columns of a panel.
template <class Type>
void pack_keys(const float* k, int64_t row, int64_t count, int64_t d, uint16_t* panel) {
  for (int64_t half = 0; half < kPanel; half += 16) {
    for (int64_t c = 0; c < d; c += 32) {
      Floats square[16];
      for (int64_t i = 0; i < 16; ++i) {
        alignas(64) uint16_t pairs[32] = {};
        if (half + i < count) Type::round(k + (half + i) * row + c, pairs, 32);
        square[i] = load_floats(reinterpret_cast<const float*>(pairs));
      }
      transpose(square);
      float* out = reinterpret_cast<float*>(panel) + c / 2 * kPanel + half;
      for (int64_t i = 0; i < 16; ++i) store_floats(out + i * kPanel, square[i]);
    }
  }
}

// The values of two positions, which may be beyond the last: 32 channels of them go to each panel.
template <class Type>
void pack_values(const float* v, int64_t row, int64_t count, int64_t d, int64_t padded,
                 uint16_t* values) {
  for (int64_t c = 0; c < d; c += kPanel) {
    alignas(64) uint16_t both[2][kPanel] = {};
    for (int64_t i = 0; i < 2 && i < count; ++i) {
      Type::round(v + i * row + c, both[i], kPanel);
    }
    uint16_t* out = values + c * padded;
    for (int64_t i = 0; i < kPanel; ++i) {
      out[2 * i] = both[0][i];
      out[2 * i + 1] = both[1][i];
    }
  }
}

template <class Type>
void pack_head_of(const TileAttention& args, int64_t tile, int64_t head, uint16_t* keys,
                  uint16_t* values) {
  const int64_t d = args.head_dim, width = args.heads * d, row = 3 * width;
  const float* k = args.qkv + tile * args.positions * row + width + head * d;
  const float* v = k + width;
  const int64_t padded = (args.positions + kPanel - 1) / kPanel * kPanel;
  for (int64_t at = 0; at < padded; at += kPanel) {
    pack_keys<Type>(k + at * row, row, args.positions - at, d, keys + at * d);
  }
  for (int64_t at = 0; at < padded; at += 2) {
    pack_values<Type>(v + at * row, row, args.positions - at, d, padded, values + at * kPanel);
  }
}

template <class Type>
void attend_of(const TileAttention& args, int64_t tile, int64_t head, int64_t first, int count,
               const uint16_t* keys, const uint16_t* values) {
  const int64_t d = args.head_dim, width = args.heads * d, row = 3 * width, n = args.positions;
  const int64_t padded = (n + kPanel - 1) / kPanel * kPanel;
  static thread_local Scratch<float> score_memory;
  static thread_local Scratch<uint16_t> weight_memory, query_memory;
  float* scores = score_memory.of(kTileRows * (padded > d ? padded : d));
  uint16_t* weights = weight_memory.of(kTileRows * padded);
  uint16_t* queries = query_memory.of(kTileRows * d);
  alignas(64) float y[kTileRows * kPanel];

  const float* q = args.qkv + tile * n * row + head * d;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  for (int i = 0; i < count; ++i) {
    for (int64_t c = 0; c < d; ++c) scores[c] = scale * q[(first + i) * row + c];
    Type::round(scores, queries + i * d, d);
  }
  for (int64_t start = 0; start < padded; start += kPanel) {
    Type::multiply_tile(count, queries, d, keys + start * d, d / 2, scores + start, padded);
  }
  float inverse[kTileRows];
  for (int i = 0; i < count; ++i) {
    float* s = scores + i * padded;
    const float most = largest_of(s, n, s[0]);
    for (int64_t j = 0; j < n; ++j) s[j] = fast_exp(s[j] - most);
    for (int64_t j = n; j < padded; ++j) s[j] = 0.0f;
    inverse[i] = 1.0f / sum_lanes(n, [&](int64_t j) { return s[j]; });
    Type::round(s, weights + i * padded, padded);
  }
  float* out = args.out + (tile * n + first) * width + head * d;
  for (int64_t start = 0; start < d; start += kPanel) {
    Type::multiply_tile(count, weights, padded, values + start * padded, padded / 2, y,
                        kPanel);
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < kPanel; ++c) out[i * width + start + c] = y[i * kPanel + c] * inverse[i];
    }
  }
}

void pack_head(const TileAttention& args, int64_t tile, int64_t head, uint16_t* keys,
               uint16_t* values) {
#if defined(IVL_HAS_FLOAT16_TILES)
  if (args.type == Dense::float16) return pack_head_of<Float16>(args, tile, head, keys, values);
#endif
#if defined(IVL_HAS_BFLOAT16_TILES)
  if (args.type == Dense::bfloat16) return pack_head_of<Bfloat16>(args, tile, head, keys, values);
#endif
}

void attend(const TileAttention& args, int64_t tile, int64_t head, int64_t first, int count,
            const uint16_t* keys, const uint16_t* values) {
#if defined(IVL_HAS_FLOAT16_TILES)
  if (args.type == Dense::float16) {
    return attend_of<Float16>(args, tile, head, first, count, keys, values);
  }
#endif
#if defined(IVL_HAS_BFLOAT16_TILES)
  if (args.type == Dense::bfloat16) {
    return attend_of<Bfloat16>(args, tile, head, first, count, keys, values);
  }
#endif
}

#if defined(IVL_HAS_FLOAT16_TILES)
constexpr bool kHasFloat16 = true;
#else
constexpr bool kHasFloat16 = false;
#endif

}  // namespace

const TileAttentionKernels tile_attention_kernels = {pack_head, attend, kHasFloat16};
#else
const TileAttentionKernels tile_attention_kernels = {nullptr, nullptr, false};
#endif

}  // namespace IVL_VARIANT
}  // namespace ivl
