// The codecs of one instruction set.
#include "kernels.hpp"

#include <cstring>

#include "variant/decode.hpp"
#include "variant/encode.hpp"

namespace ivl::IVL_VARIANT {
namespace quant {
namespace {

// Swaps, for all rows and lanes, the bit `kBit` of a value's row with that of its lane.
template <int kBit>
inline void swap_bit(Lanes* rows) {
  IntLanes first, second;
  for (int lane = 0; lane < kLanes; ++lane) {
    first[lane] = lane & kBit ? kLanes + lane - kBit : lane;
    second[lane] = lane & kBit ? kLanes + lane : lane + kBit;
  }
  for (int row = 0; row < kLanes; ++row) {
    if (row & kBit) continue;
    const Lanes a = rows[row], b = rows[row + kBit];
    rows[row] = shuffle(a, b, first);
    rows[row + kBit] = shuffle(a, b, second);
  }
}

// Rows of kLanes blocks become lanes: element i of `out` is value i of each. `rows` has their
// addresses.
template <int kSize>
void to_lanes(const float* const* rows, Lanes* out) {
  for (int i = 0; i < kSize; i += kLanes) {
    Lanes square[kLanes];
    for (int row = 0; row < kLanes; ++row) std::memcpy(&square[row], rows[row] + i, sizeof(Lanes));
    swap_bit<1>(square);
    swap_bit<2>(square);
    if constexpr (kLanes > 4) swap_bit<4>(square);
    if constexpr (kLanes > 8) swap_bit<8>(square);
    for (int row = 0; row < kLanes; ++row) out[i + row] = square[row];
  }
}

// Writes the first `count` lanes as blocks, two bytes at a time.
template <int kBytes>
void from_lanes(const IntLanes* bytes, int count, uint8_t* out) {
  static_assert(kBytes % 2 == 0);
  for (int k = 0; k < kBytes; k += 2) {
    const IntLanes both = bytes[k] | bytes[k + 1] << 8;
    for (int lane = 0; lane < count; ++lane) {
      const uint16_t pair = static_cast<uint16_t>(both[lane]);
      std::memcpy(out + lane * kBytes + k, &pair, sizeof pair);
    }
  }
}

template <int kSize>
int range_flags(const Lanes* x, float limit) {
  IntLanes finite = ~IntLanes{}, within = finite;
  for (int i = 0; i < kSize; ++i) {
    finite &= magnitude(x[i]) <= kLargest;
    within &= magnitude(x[i]) < limit;
  }
  int all_finite = -1, all_within = -1;
  for (int lane = 0; lane < kLanes; ++lane) {
    all_finite &= finite[lane];
    all_within &= within[lane];
  }
  return (all_finite ? 0 : kNotFinite) | (all_within ? 0 : kOutOfRange);
}

template <typename Format, bool kWeighted>
int encode_blocks(const EncodeTask& task) {
  constexpr int kSize = Format::size;
  alignas(64) Lanes x[kSize];
  alignas(64) Lanes importance[kWeighted ? kSize : 1];
  alignas(64) IntLanes bytes[Format::bytes];
  int flags = 0;
  for (int64_t done = 0; done < task.count; done += kLanes) {
    const int used = static_cast<int>(task.count - done < kLanes ? task.count - done : kLanes);
    const float *rows[kLanes], *shares[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      // The last block stands in for those that are not there.
      const int64_t block = task.first + done + (lane < used ? lane : used - 1);
      rows[lane] = task.weights + block * kSize;
      if (kWeighted) shares[lane] = task.importance + block % task.period * kSize;
    }
    to_lanes<kSize>(rows, x);
    if (kWeighted) to_lanes<kSize>(shares, importance);
    flags |= range_flags<kSize>(x, task.limit);
    Format::encode(Group<kWeighted>{x, kWeighted ? importance : nullptr}, bytes);
    from_lanes<Format::bytes>(bytes, used, task.out + (task.first + done) * Format::bytes);
  }
  return flags;
}

template <typename Format>
int encode(const EncodeTask& task) {
  return task.importance ? encode_blocks<Format, true>(task) : encode_blocks<Format, false>(task);
}

template <typename Format>
void decode(const uint8_t* blocks, int64_t count, float* weights) {
  for (int64_t b = 0; b < count; ++b)
    Format::decode(blocks + b * Format::bytes, weights + b * Format::size);
}

template <typename Reader, typename Writer>
constexpr Codec both() {
  static_assert(Reader::size == Writer::size && Reader::bytes == Writer::bytes);
  return {Reader::size, Reader::bytes, encode<Writer>, decode<Reader>};
}

template <typename Reader>
constexpr Codec read_only() {
  return {Reader::size, Reader::bytes, nullptr, decode<Reader>};
}

struct Entry {
  int type_id;
  Codec codec;
};

constexpr Entry kCodecs[] = {
    {1, read_only<ReadF16>()},      {2, both<ReadQ4_0, Q4_0>()},    {3, both<ReadQ4_1, Q4_1>()},
    {6, both<ReadQ5_0, Q5_0>()},    {7, both<ReadQ5_1, Q5_1>()},    {8, both<ReadQ8_0, Q8_0>()},
    {10, both<ReadQ2_K, Q2_K>()},   {11, both<ReadQ3_K, Q3_K>()},   {12, both<ReadQ4_K, Q4_K>()},
    {13, both<ReadQ5_K, Q5_K>()},   {14, both<ReadQ6_K, Q6_K>()},   {20, read_only<ReadIQ4_NL>()},
    {23, read_only<ReadIQ4_XS>()},  {30, read_only<ReadBF16>()},
};

}  // namespace
}  // namespace quant

const Codec* find_codec(int type_id) {
  for (const quant::Entry& entry : quant::kCodecs)
    if (entry.type_id == type_id) return &entry.codec;
  return nullptr;
}

}  // namespace ivl::IVL_VARIANT
