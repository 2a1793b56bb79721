// Attention over the blocks of the key/value cache. docs/kernels.md explains the loops.
//
// Rows are the pairs of a token and a head of the group: they all meet the same keys. Keys are gone
// through in chunks that stay in a cache, with the largest score and the sum of the weights so far
// kept for each row (online softmax: Milakov and Gimelshein, 2018, arXiv:1805.02867; the tiling is
// that of FlashAttention, arXiv:2205.14135).
#include "kernels.hpp"

#include "numbers.hpp"
#include "simd.hpp"
#include "vector_math.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

constexpr int64_t kChunkKeys = 128;
constexpr int kRows = kFloatRows < 8 ? kFloatRows : 8;  // rows whose sums are in registers
constexpr int64_t kWidth = 16 * kFloatVectors;          // numbers of a row in registers
constexpr float kNothing = -3.0e38f;                    // the largest score of no keys

// c (R, kWidth) = a (R, depth) b (depth, kWidth), added to what is in c or not; b is of the type TYPE,
// c of float32.
template <Dtype TYPE, int R, bool ADD>
void multiply_block(const float* a, int64_t a_stride, const uint8_t* b, int64_t b_stride,
                    int64_t depth, float* c, int64_t c_stride) {
  constexpr int64_t size = bytes_of(TYPE);
  Floats acc[R][kFloatVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kFloatVectors; ++v) {
      acc[r][v] = ADD ? load_floats(c + r * c_stride + 16 * v) : zeros();
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats row[kFloatVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kFloatVectors; ++v) {
      row[v] = load_numbers<TYPE>(b + (k * b_stride + 16 * v) * size);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats all = splat(a[r * a_stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < kFloatVectors; ++v) acc[r][v] = multiply_add(row[v], all, acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kFloatVectors; ++v) store_floats(c + r * c_stride + 16 * v, acc[r][v]);
  }
}

// The same for `rows` rows, at most R, and `width` columns.
template <Dtype TYPE, bool ADD, int R>
void multiply_rows(int64_t rows, const float* a, int64_t a_stride, const uint8_t* b,
                   int64_t b_stride, int64_t depth, float* c, int64_t c_stride, int64_t width) {
  if (rows == R) {
    for (int64_t at = 0; at < width; at += kWidth) {
      multiply_block<TYPE, R, ADD>(a, a_stride, b + at * bytes_of(TYPE), b_stride, depth, c + at,
                                   c_stride);
    }
  } else if constexpr (R > 1) {
    multiply_rows<TYPE, ADD, R - 1>(rows, a, a_stride, b, b_stride, depth, c, c_stride, width);
  }
}

// For any number of rows.
template <bool ADD, Dtype TYPE = Dtype::float32>
void multiply_all(int64_t rows, const float* a, int64_t a_stride, const void* b, int64_t b_stride,
                  int64_t depth, float* c, int64_t c_stride, int64_t width) {
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t left = rows - row;
    multiply_rows<TYPE, ADD, kRows>(left < kRows ? left : kRows, a + row * a_stride, a_stride,
                                    static_cast<const uint8_t*>(b), b_stride, depth,
                                    c + row * c_stride, c_stride, width);
  }
}

// The keys of a block as float32 (head_dim, 32): where they lie, or copied to `wide`.
const float* widen_keys(const KVLayout& layout, const uint8_t* head, float* wide) {
  if (layout.type == KVType::float32) return reinterpret_cast<const float*>(head);
  const int64_t all = layout.head_dim * kBlockTokens;
  if (layout.type == KVType::float16) {
    for (int64_t at = 0; at < all; at += 16) store_floats(wide + at, from_float16(head + 2 * at));
    return wide;
  }
  const float* scales = reinterpret_cast<const float*>(head + layout.key_scales_at());
  for (int64_t at = 0; at < all; at += 16) {
    const int64_t group = at / kBlockTokens / kScaleGroup;
    const Floats scale = load_floats(scales + group * kBlockTokens + at % kBlockTokens);
    store_floats(wide + at, multiply(from_int8(head + at), scale));
  }
  return wide;
}

// The values of the first `count` tokens of a block, to float32 (count, head_dim).
void widen_values(const KVLayout& layout, const uint8_t* head, int64_t count, float* wide) {
  const uint8_t* numbers = head + layout.values_at();
  if (layout.type == KVType::float16) {
    const int64_t all = count * layout.head_dim;
    for (int64_t at = 0; at < all; at += 16) store_floats(wide + at, from_float16(numbers + 2 * at));
    return;
  }
  const float* scales = reinterpret_cast<const float*>(head + layout.value_scales_at());
  const int64_t groups = layout.head_dim / kScaleGroup;
  for (int64_t token = 0; token < count; ++token) {
    for (int64_t d = 0; d < layout.head_dim; d += 16) {
      const int64_t at = token * layout.head_dim + d;
      Floats x;
      if (layout.type == KVType::float32) {
        x = load_floats(reinterpret_cast<const float*>(numbers) + at);
      } else {
        x = multiply(from_int8(numbers + at), splat(scales[token * groups + d / kScaleGroup]));
      }
      store_floats(wide + at, x);
    }
  }
}

// Scores of a row become weights, for the first `limit` of `keys` keys; `most` and `sum` go on, and
// so does `out` (head_dim,), which was summed up with an older largest score.
void soften(float* scores, int64_t limit, int64_t keys, int64_t head_dim, float& most, float& sum,
            float* out) {
  // A copy: `most` might be one of the scores, for all that a compiler knows.
  const float before = most, top = largest_of(scores, limit, before);
  for (int64_t i = 0; i < limit; ++i) scores[i] = fast_exp(scores[i] - top);
  for (int64_t i = limit; i < keys; ++i) scores[i] = 0.0f;
  const float added = sum_lanes(limit, [&](int64_t i) { return scores[i]; });
  most = top;
  if (top != before) {
    const float shrink = fast_exp(before - top);
    sum *= shrink;
    const Floats all = splat(shrink);
    for (int64_t d = 0; d < head_dim; d += 16) {
      store_floats(out + d, multiply(load_floats(out + d), all));
    }
  }
  sum += added;
}

// What the scratch memory is divided into.
struct Memory {
  float *q, *out, *scores, *most, *sum, *keys, *values;

  static int64_t bytes(int64_t rows, int64_t head_dim) {
    const int64_t padded = (rows + 15) / 16 * 16;
    return 4 * (padded * (2 * head_dim + kChunkKeys + 2) +
                head_dim * (kBlockTokens + kChunkKeys));
  }
  Memory(uint8_t* memory, int64_t rows, int64_t head_dim) {
    const int64_t padded = (rows + 15) / 16 * 16;
    q = reinterpret_cast<float*>(memory);
    out = q + padded * head_dim;
    scores = out + padded * head_dim;
    most = scores + padded * kChunkKeys;
    sum = most + padded;
    keys = sum + padded;
    values = keys + head_dim * kBlockTokens;
  }
};

// The head in the block of the cache that has this position.
const uint8_t* block_at(const AttentionTask& task, int64_t position) {
  return task.layer + task.blocks[position / kBlockTokens] * task.block_bytes + task.head_offset;
}

// Asks for a block of the cache: where it lies no processor can guess.
void prefetch_block(const AttentionTask& task, int64_t position) {
  const uint8_t* head = block_at(task, position);
  for (int64_t at = 0; at < task.layout.head_bytes(); at += 64) prefetch(head + at);
}

// Adds the keys [first, last), at most a chunk, to what is known of all rows.
void attend_chunk(const AttentionTask& task, const Memory& m, int64_t first, int64_t last) {
  const int64_t rows = task.num_tokens * task.group, head_dim = task.layout.head_dim;
  // Numbers that are used once are widened where they are used.
  const bool as_they_are = task.layout.type == KVType::float16 && rows <= kRows;
  const auto for_blocks = [&](auto&& body) {
    for (int64_t at = first; at < last; at += kBlockTokens) {
      const int64_t left = last - at;
      body(block_at(task, at), at, left < kBlockTokens ? left : kBlockTokens);
    }
  };
  for_blocks([&](const uint8_t* head, int64_t at, int64_t count) {
    if (at + kBlockTokens < task.last_key) prefetch_block(task, at + kBlockTokens);
    float* scores = m.scores + at - first;
    if (as_they_are) {
      multiply_all<false, Dtype::float16>(rows, m.q, head_dim, head, kBlockTokens, head_dim, scores,
                                          kChunkKeys, kBlockTokens);
      return;
    }
    const float* keys = widen_keys(task.layout, head, m.keys);
    multiply_all<false>(rows, m.q, head_dim, keys, kBlockTokens, head_dim, scores, kChunkKeys,
                        kBlockTokens);
    widen_values(task.layout, head, count, m.values + (at - first) * head_dim);
  });
  const int64_t keys = last - first;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t seen = task.first_position + row / task.group + 1 - first;
    const int64_t limit = seen < 0 ? 0 : seen < keys ? seen : keys;
    soften(m.scores + row * kChunkKeys, limit, keys, head_dim, m.most[row], m.sum[row],
           m.out + row * head_dim);
  }
  if (!as_they_are) {
    multiply_all<true>(rows, m.scores, kChunkKeys, m.values, head_dim, keys, m.out, head_dim,
                       head_dim);
    return;
  }
  for_blocks([&](const uint8_t* head, int64_t at, int64_t count) {
    multiply_all<true, Dtype::float16>(rows, m.scores + at - first, kChunkKeys,
                                       head + task.layout.values_at(), head_dim, count, m.out,
                                       head_dim, head_dim);
  });
}

void attend(const AttentionTask& task, uint8_t* scratch) {
  const int64_t rows = task.num_tokens * task.group, head_dim = task.layout.head_dim;
  const int64_t width = task.group * head_dim;
  const Memory m(scratch, rows, head_dim);
  for (int64_t token = 0; token < task.num_tokens; ++token) {
    memcpy(m.q + token * width, task.q + token * task.q_stride, static_cast<size_t>(4 * width));
  }
  memset(m.out, 0, static_cast<size_t>(4 * rows * head_dim));
  for (int64_t row = 0; row < rows; ++row) {
    m.most[row] = kNothing;
    m.sum[row] = 0.0f;
  }
  for (int64_t first = task.first_key; first < task.last_key; first += kChunkKeys) {
    const int64_t last = first + kChunkKeys;
    attend_chunk(task, m, first, last < task.last_key ? last : task.last_key);
  }
  for (int64_t row = 0; row < rows; ++row) {
    float* out = task.out + row / task.group * task.out_stride + row % task.group * head_dim;
    const Floats share = splat(task.state == nullptr ? 1.0f / m.sum[row] : 1.0f);
    for (int64_t d = 0; d < head_dim; d += 16) {
      store_floats(out + d, multiply(load_floats(m.out + row * head_dim + d), share));
    }
    if (task.state != nullptr) {
      task.state[2 * row] = m.most[row];
      task.state[2 * row + 1] = m.sum[row];
    }
  }
}

void combine(const float* parts, int64_t part_stride, const float* states, int64_t state_stride,
             int64_t count, int64_t head_dim, float* out) {
  float most = kNothing, sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float here = states[i * state_stride];
    most = here > most ? here : most;
  }
  for (int64_t d = 0; d < head_dim; ++d) out[d] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float weight = fast_exp(states[i * state_stride] - most);
    sum += weight * states[i * state_stride + 1];
    const float* part = parts + i * part_stride;
    for (int64_t d = 0; d < head_dim; ++d) out[d] += weight * part[d];
  }
  for (int64_t d = 0; d < head_dim; ++d) out[d] /= sum;
}

void rotate(float* x, const float* cos, const float* sin, int64_t head_dim, float scale) {
  const int64_t half = head_dim / 2;
  for (int64_t d = 0; d < half; ++d) {
    const float a = x[d], b = x[d + half];
    x[d] = (a * cos[d] - b * sin[d]) * scale;
    x[d + half] = (b * cos[d + half] + a * sin[d + half]) * scale;
  }
}

// 32 numbers as int8; returns their scale.
float quantize_group(const float* x, int8_t* out) {
  const Floats a = load_floats(x), b = load_floats(x + 16);
  const float most = largest(maximum(magnitude(a), magnitude(b)));
  const Floats inverse = splat(most > 1e-30f ? 127.0f / most : 0.0f);
  to_int8(out, multiply(a, inverse));
  to_int8(out + 16, multiply(b, inverse));
  return most / 127.0f;
}

void store(const KVLayout& layout, uint8_t* head, int64_t slot, const float* key,
           const float* value) {
  const int64_t head_dim = layout.head_dim;
  uint8_t* values = head + layout.values_at();
  if (layout.type == KVType::float32) {
    float* keys = reinterpret_cast<float*>(head);
    for (int64_t d = 0; d < head_dim; ++d) keys[d * kBlockTokens + slot] = key[d];
    memcpy(values + 4 * slot * head_dim, value, static_cast<size_t>(4 * head_dim));
    return;
  }
  if (layout.type == KVType::float16) {
    uint16_t* keys = reinterpret_cast<uint16_t*>(head);
    for (int64_t d = 0; d < head_dim; d += 16) {
      uint16_t halves[16];
      to_float16(halves, load_floats(key + d));
      for (int64_t i = 0; i < 16; ++i) keys[(d + i) * kBlockTokens + slot] = halves[i];
      to_float16(values + 2 * (slot * head_dim + d), load_floats(value + d));
    }
    return;
  }
  int8_t* keys = reinterpret_cast<int8_t*>(head);
  float* key_scales = reinterpret_cast<float*>(head + layout.key_scales_at());
  float* value_scales = reinterpret_cast<float*>(head + layout.value_scales_at());
  for (int64_t g = 0; g < head_dim / kScaleGroup; ++g) {
    int8_t bytes[kScaleGroup];
    key_scales[g * kBlockTokens + slot] = quantize_group(key + g * kScaleGroup, bytes);
    for (int64_t i = 0; i < kScaleGroup; ++i) {
      keys[(g * kScaleGroup + i) * kBlockTokens + slot] = bytes[i];
    }
    int8_t* to = reinterpret_cast<int8_t*>(values) + slot * head_dim + g * kScaleGroup;
    value_scales[slot * (head_dim / kScaleGroup) + g] =
        quantize_group(value + g * kScaleGroup, to);
  }
}

}  // namespace

const AttentionKernels attention_kernels = {rotate, store, Memory::bytes, attend, combine};

}  // namespace IVL_VARIANT
}  // namespace ivl
