// What the processor can do at most, measured with nothing else around it: what bench/matmul.py
// holds the kernels against.
#include "kernels.hpp"

#include "simd.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

// Reads all the bytes, a multiple of 512; the value has no meaning but to need them.
uint64_t read_all(const uint8_t* data, int64_t num_bytes) {
  uint64_t parts[64] = {};
  for (int64_t at = 0; at < num_bytes; at += 512) {
    uint64_t words[64];
    memcpy(words, data + at, 512);
    for (int i = 0; i < 64; ++i) parts[i] ^= words[i];
  }
  uint64_t all = 0;
  for (uint64_t part : parts) all ^= part;
  return all;
}

constexpr int kChains = 12;  // independent sums, more than an instruction takes to finish

int64_t operations_per_round() { return int64_t{kChains} * 8 * 64 * 2; }

// Products of bytes whose operands are in registers.
float multiply_bytes(int64_t rounds) {
  alignas(64) uint8_t bytes[64] = {1, 2, 3, 4, 5, 6, 7, 8};
  const int8_t four[4] = {1, 0, 1, 0};
  const Bytes w = load_bytes(bytes);
  Sum sums[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sums[i] = sum_from(0);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sum_add<16>(sums[i], w, four, step);
    }
  }
  Floats all = zeros();
  for (int i = 0; i < kChains; ++i) all = add(all, sum_scaled<16>(sums[i], splat(1.0f), zeros()));
  return total(all);
}

}  // namespace

const LimitKernels limit_kernels = {read_all, multiply_bytes, operations_per_round};

}  // namespace IVL_VARIANT
}  // namespace ivl
