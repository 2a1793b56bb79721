// How keys and values of one head lie in a block of the cache; the same for all instruction sets.
//
// A block holds 32 tokens. Keys are stored channel by channel, the 32 tokens of a channel side by
// side, so that one load meets 16 tokens; values token by token. At 8 bits 32 neighbouring channels
// of one token share a float32 scale. For each key/value head of a block, without gaps:
//
//   keys (head_dim, 32), values (32, head_dim), and at 8 bits
//   scales of keys (head_dim / 32, 32), scales of values (32, head_dim / 32)
#pragma once

#include <cstdint>

namespace ivl {

constexpr int64_t kBlockTokens = 32;
constexpr int64_t kScaleGroup = 32;

enum class KVType : int { float32 = 0, float16 = 1, int8 = 2 };

static constexpr int64_t kv_number_bytes(KVType type) {
  return type == KVType::float32 ? 4 : type == KVType::float16 ? 2 : 1;
}

// Where the parts of one head begin, in bytes from its own begin. head_dim is a multiple of 32.
struct KVLayout {
  KVType type;
  int64_t head_dim;

  constexpr int64_t values_at() const { return head_dim * kBlockTokens * kv_number_bytes(type); }
  constexpr int64_t key_scales_at() const { return 2 * values_at(); }
  constexpr int64_t value_scales_at() const { return key_scales_at() + 4 * head_dim; }
  constexpr int64_t head_bytes() const {
    return type == KVType::int8 ? value_scales_at() + 4 * head_dim : key_scales_at();
  }
};

}  // namespace ivl
