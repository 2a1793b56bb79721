// The vision tower's attention, by float16 tiles.
//
// Twelve queries are taken at once: their scores against all keys, a softmax, and the product with
// all values. Scores of 12 queries fit into the second-level cache; a matrix of all queries by all
// keys is never there. Keys and values are laid out as panels first (dense.hpp): a panel of keys has
// 32 keys as its outputs, a panel of values 32 channels.
#include <cmath>

#include "float16_tile.hpp"
#include "kernels.hpp"
#include "vector_math.hpp"

namespace ivl {
namespace IVL_VARIANT {

#if defined(IVL_HAS_FLOAT16_TILES)
namespace {

uint16_t half(float x) { return static_cast<uint16_t>(_cvtss_sh(x, 0)); }

void pack_head(const TileAttention& args, int64_t tile, int64_t head, uint16_t* keys,
                    uint16_t* values) {
  const int64_t d = args.head_dim, width = args.heads * d, row = 3 * width;
  const float* k = args.qkv + tile * args.positions * row + width + head * d;
  const float* v = k + width;
  const int64_t padded = (args.positions + kRowUnits - 1) / kRowUnits * kRowUnits;
  for (int64_t position = 0; position < padded; ++position) {
    const bool inside = position < args.positions;
    uint16_t* key = keys + position / kPanel * kPanel * d + position % kPanel * 2;
    uint16_t* value = values + position / 2 * 2 * kPanel + position % 2;
    for (int64_t c = 0; c < d; ++c) {
      key[c / 2 * 2 * kPanel + c % 2] = inside ? half(k[position * row + c]) : uint16_t{0};
      value[c / kPanel * kPanel * padded + c % kPanel * 2] =
          inside ? half(v[position * row + c]) : uint16_t{0};
    }
  }
}

void attend(const TileAttention& args, int64_t tile, int64_t head, int64_t first,
                         int count, const uint16_t* keys, const uint16_t* values) {
  const int64_t d = args.head_dim, width = args.heads * d, row = 3 * width, n = args.positions;
  const int64_t padded = (n + kRowUnits - 1) / kRowUnits * kRowUnits;
  static thread_local Scratch<float> score_memory;
  static thread_local Scratch<uint16_t> weight_memory, query_memory;
  float* scores = score_memory.of(kTileRows * padded);
  uint16_t* weights = weight_memory.of(kTileRows * padded);
  uint16_t* queries = query_memory.of(kTileRows * d);
  alignas(64) float y[kTileRows * kPanel];

  const float* q = args.qkv + tile * n * row + head * d;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  for (int i = 0; i < count; ++i) {
    to_float16(q + (first + i) * row, scale, queries + i * d, d);
  }
  for (int64_t start = 0; start < padded; start += kPanel) {
    float16_tile(count, queries, d, keys + start * d, d / 2, y);
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < kPanel; ++c) scores[i * padded + start + c] = y[i * kPanel + c];
    }
  }
  float inverse[kTileRows];
  for (int i = 0; i < count; ++i) {
    float* s = scores + i * padded;
    const float most = max_lanes(n, s[0], [&](int64_t j) { return s[j]; });
    for (int64_t j = 0; j < n; ++j) s[j] = fast_exp(s[j] - most);
    for (int64_t j = n; j < padded; ++j) s[j] = 0.0f;
    inverse[i] = 1.0f / sum_lanes(n, [&](int64_t j) { return s[j]; });
    to_float16(s, 1.0f, weights + i * padded, padded);
  }
  float* out = args.out + (tile * n + first) * width + head * d;
  for (int64_t start = 0; start < d; start += kPanel) {
    float16_tile(count, weights, padded, values + start * padded, padded / 2, y);
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < kPanel; ++c) out[i * width + start + c] = y[i * kPanel + c] * inverse[i];
    }
  }
}

}  // namespace

const TileAttentionKernels tile_attention_kernels = {pack_head, attend};
#else
const TileAttentionKernels tile_attention_kernels = {nullptr, nullptr};
#endif

}  // namespace IVL_VARIANT
}  // namespace ivl
