// The codecs of csrc/variant/quantize.cpp on all threads.
#include "quantize.hpp"

#include <algorithm>
#include <atomic>

#include "threads.hpp"

namespace ivl {
namespace {

// What one task of a thread takes: a fraction of a millisecond, and whole vectors of blocks.
constexpr int64_t kTaskWeights = 1 << 16;

template <typename Body>
void over_blocks(const Codec& codec, int64_t count, Body body) {
  const int64_t step = std::max<int64_t>(1, kTaskWeights / codec.block_size);
  parallel_for((count + step - 1) / step, [&](int64_t task) {
    body(task * step, std::min(step, count - task * step));
  });
}

}  // namespace

int encode_blocks(const Codec& codec, const EncodeTask& all) {
  std::atomic<int> flags{0};
  over_blocks(codec, all.count, [&](int64_t first, int64_t some) {
    EncodeTask part = all;
    part.first = all.first + first;
    part.count = some;
    flags.fetch_or(codec.encode(part), std::memory_order_relaxed);
  });
  return flags.load();
}

void decode_blocks(const Codec& codec, const uint8_t* blocks, int64_t count, float* weights) {
  over_blocks(codec, count, [&](int64_t first, int64_t some) {
    codec.decode(blocks + first * codec.block_bytes, some, weights + first * codec.block_size);
  });
}

}  // namespace ivl
