// Turning weights into blocks and blocks into weights, in the formats of src/ivl/quant/, whose
// docstrings are the byte layouts. Formats go by their number in GGUF files (ggml_type).
#pragma once

#include <cstdint>

namespace ivl {

// What the weights of some blocks are, as bits.
enum RangeFlags : int { kOutOfRange = 1, kNotFinite = 2 };

// `importance` is null, or (period, block size): block b has row b % period of it. Weights of a
// magnitude of `limit` or more are out of range; what is written for them means nothing.
struct EncodeTask {
  const float* weights;
  const float* importance;
  int64_t period, first, count;
  float limit;
  uint8_t* out;
};

// Encodes blocks [first, first + count) and returns the RangeFlags of their weights.
using Encode = int (*)(const EncodeTask&);
// Weights of `count` blocks.
using Decode = void (*)(const uint8_t* blocks, int64_t count, float* weights);

struct Codec {
  int block_size, block_bytes;
  Encode encode;  // null: read only
  Decode decode;
};

// On all threads: encodes all of a task's blocks, and decodes `count` blocks.
int encode_blocks(const Codec& codec, const EncodeTask& all);
void decode_blocks(const Codec& codec, const uint8_t* blocks, int64_t count, float* weights);

}  // namespace ivl
