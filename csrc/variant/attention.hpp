// What each instruction set offers to csrc/decoder.cpp for attention. Plain pointers only.
#pragma once

#include <cstdint>

#include "../kv_layout.hpp"

namespace ivl {

// Query heads of one key/value head, for some tokens that follow each other in one sequence.
struct AttentionTask {
  const float* q;     // the first head of the first token: heads side by side, rotated and scaled
  int64_t q_stride;   // numbers from one token to the next
  int64_t num_tokens, group;  // tokens, and heads of each
  int64_t first_position;     // of the first token in its sequence
  // The cache: block b of the sequence lies at layer + blocks[b] * block_bytes + head_offset.
  KVLayout layout;
  const uint8_t* layer;
  int64_t block_bytes, head_offset;
  const int32_t* blocks;
  int64_t first_key, last_key;  // positions; the first is a multiple of 32
  float* out;          // as q
  int64_t out_stride;
  // For each token and head the largest score and the sum of the weights, when `out` is to stay
  // undivided, because other keys are attended to elsewhere; else null.
  float* state;
};

struct AttentionKernels {
  // Rotates one head of one token and multiplies it by `scale`.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t head_dim, float scale);
  // Stores the key and the value of one token and head in place `slot` of a block.
  void (*store)(const KVLayout& layout, uint8_t* head, int64_t slot, const float* key,
                const float* value);
  // Bytes of scratch memory for `attend`, aligned to a cache line.
  int64_t (*scratch_bytes)(int64_t num_rows, int64_t head_dim);
  void (*attend)(const AttentionTask& task, uint8_t* scratch);
  // Puts together `count` undivided results of one head that lie `out_stride` and `state_stride`
  // numbers apart.
  void (*combine)(const float* parts, int64_t part_stride, const float* states,
                  int64_t state_stride, int64_t count, int64_t head_dim, float* out);
};

namespace portable { extern const AttentionKernels attention_kernels; }
namespace avx2 { extern const AttentionKernels attention_kernels; }
namespace avx512 { extern const AttentionKernels attention_kernels; }
namespace neon { extern const AttentionKernels attention_kernels; }

}  // namespace ivl
