// From the blocks of 16 rows to the planes of a panel. Words of 4 bytes are turned first, so that
// one vector holds the same word of all rows; what is left is to move bits within bytes.
// layout.hpp has the planes, src/ivl/quant the blocks.
#include "kernels.hpp"

#include "layout.hpp"
#include "simd.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

// Word j of all rows, for up to 32 words of a block.
struct Words {
  alignas(64) uint8_t at[32][64];
};

IVL_INLINE Bytes word(const Words& words, int j) { return load_bytes(words.at[j]); }

void turn(uint8_t (*lines)[64], uint8_t (*words)[64]) {
  Floats square[16];
  for (int i = 0; i < 16; ++i) square[i] = load_floats(reinterpret_cast<const float*>(lines[i]));
  transpose(square);
  for (int i = 0; i < 16; ++i) store_floats(reinterpret_cast<float*>(words[i]), square[i]);
}

// `count` words, 8, 16 or 32, of every row.
void load_words(const uint8_t* row, int64_t row_bytes, int count, Words& out) {
  alignas(64) uint8_t lines[16][64];
  for (int from = 0; from < count; from += 16) {
    const size_t bytes = count - from < 16 ? 32 : 64;
    for (int i = 0; i < 16; ++i) memcpy(lines[i], row + i * row_bytes + 4 * from, bytes);
    turn(lines, out.at + from);
  }
}

// The 4 words of nibbles of up to 4 blocks of 32 columns.
void load_nibbles(const uint8_t* nibbles, int64_t row_bytes, int64_t block_bytes, int64_t blocks,
                  Words& out) {
  alignas(64) uint8_t lines[16][64];
  for (int i = 0; i < 16; ++i) {
    for (int64_t b = 0; b < blocks; ++b) {
      memcpy(lines[i] + 16 * b, nibbles + i * row_bytes + b * block_bytes, 16);
    }
  }
  turn(lines, out.at);
}

// Planes of the lower 4 bits: nibble FROM of words first to first + 7.
template <int FROM>
void put_nibbles(const Words& words, int first, uint8_t* planes) {
  for (int i = 0; i < 4; ++i) {
    const Bytes low = pick<FROM, 4, 0>(word(words, first + i));
    store_bytes(planes + 64 * i, pick_or<FROM, 4, 4>(low, word(words, first + i + 4)));
  }
}

// Planes of pairs of bits, from bits FROM and FROM + 1 of words first to first + 7.
template <int FROM>
void put_pairs(const Words& words, int first, uint8_t* planes) {
  for (int h = 0; h < 2; ++h) {
    const int at = first + 4 * h;
    Bytes all = pick<FROM, 2, 0>(word(words, at));
    all = pick_or<FROM, 2, 2>(all, word(words, at + 1));
    all = pick_or<FROM, 2, 4>(all, word(words, at + 2));
    store_bytes(planes + 64 * h, pick_or<FROM, 2, 6>(all, word(words, at + 3)));
  }
}

// The plane of single bits, from bit FROM of words 0 to 7.
template <int FROM>
void put_bits(const Words& words, uint8_t* plane) {
  Bytes all = pick<FROM, 1, 0>(word(words, 0));
  all = pick_or<FROM, 1, 1>(all, word(words, 1));
  all = pick_or<FROM, 1, 2>(all, word(words, 2));
  all = pick_or<FROM, 1, 3>(all, word(words, 3));
  all = pick_or<FROM, 1, 4>(all, word(words, 4));
  all = pick_or<FROM, 1, 5>(all, word(words, 5));
  all = pick_or<FROM, 1, 6>(all, word(words, 6));
  store_bytes(plane, pick_or<FROM, 1, 7>(all, word(words, 7)));
}

template <int GROUP>
void put_all_bits(const Words& words, int64_t size, int64_t at, uint8_t* planes) {
  put_bits<GROUP>(words, planes + GROUP * size + at);
  if constexpr (GROUP < 7) put_all_bits<GROUP + 1>(words, size, at, planes);
}

// Blocks of 256 columns: pairs of bits for the groups of each half, from words first on.
void put_all_pairs(const Words& words, int64_t size, int64_t at, uint8_t* planes) {
  for (int half = 0; half < 2; ++half) {
    uint8_t* to = planes + 4 * half * size + at;
    put_pairs<0>(words, 8 * half, to);
    put_pairs<2>(words, 8 * half, to + size);
    put_pairs<4>(words, 8 * half, to + 2 * size);
    put_pairs<6>(words, 8 * half, to + 3 * size);
  }
}

// Nibbles where 32 bytes hold two neighbouring groups.
void put_neighbours(const Words& words, int64_t size, uint8_t* planes) {
  for (int p = 0; p < 4; ++p) {
    put_nibbles<0>(words, 8 * p, planes + 2 * p * size);
    put_nibbles<4>(words, 8 * p, planes + (2 * p + 1) * size);
  }
}

// Nibbles where 64 bytes hold four groups: the lower halves two, the upper halves two.
void put_fours(const Words& words, int count, int64_t size, uint8_t* planes) {
  for (int p = 0; p < count; ++p) {
    uint8_t* to = planes + 4 * p * size;
    put_nibbles<0>(words, 16 * p, to);
    put_nibbles<0>(words, 16 * p + 8, to + size);
    put_nibbles<4>(words, 16 * p, to + 2 * size);
    put_nibbles<4>(words, 16 * p + 8, to + 3 * size);
  }
}

template <int TYPE>
void pack_block(const uint8_t* block, int64_t row_bytes, int64_t size, uint8_t* planes) {
  Words words;
  if constexpr (TYPE == 10 || TYPE == 11) {  // Q2_K, Q3_K
    load_words(block + (TYPE == 10 ? 16 : 32), row_bytes, 16, words);
    put_all_pairs(words, size, 0, planes);
  }
  if constexpr (TYPE == 11) {
    load_words(block, row_bytes, 8, words);
    put_all_bits<0>(words, size, 128, planes);
  }
  if constexpr (TYPE == 12 || TYPE == 13) {  // Q4_K, Q5_K
    load_words(block + (TYPE == 12 ? 16 : 48), row_bytes, 32, words);
    put_neighbours(words, size, planes);
  }
  if constexpr (TYPE == 13) {
    load_words(block + 16, row_bytes, 8, words);
    put_all_bits<0>(words, size, 256, planes);
  }
  if constexpr (TYPE == 14) {  // Q6_K
    load_words(block, row_bytes, 32, words);
    put_fours(words, 2, size, planes);
    load_words(block + 128, row_bytes, 16, words);
    put_all_pairs(words, size, 256, planes);
  }
  if constexpr (TYPE == 23) {  // IQ4_XS: a group's 16 bytes are its planes already
    load_words(block + 8, row_bytes, 32, words);
    for (int j = 0; j < 32; ++j) {
      store_bytes(planes + j / 4 * size + 64 * (j % 4), word(words, j));
    }
  }
  if constexpr (TYPE == -1) {  // AWQ
    load_words(block + 4, row_bytes, 16, words);
    put_fours(words, 1, size, planes);
  }
  if constexpr (TYPE == 8) {  // Q8_0: 128 more
    load_words(block + 2, row_bytes, 8, words);
    for (int j = 0; j < 8; ++j) {
      for (int i = 0; i < 64; ++i) planes[64 * j + i] = words.at[j][i] ^ 0x80;
    }
  }
}

// The plane of the fifth bits: bit 4 * v + c of a row's word goes to bit v of byte c.
void put_fifth_bits(const uint8_t* bits, int64_t row_bytes, uint8_t* plane) {
  uint32_t words[16], out[16] = {};
  for (int i = 0; i < 16; ++i) memcpy(words + i, bits + i * row_bytes, 4);
  for (int v = 0; v < 8; ++v) {
    // Four neighbouring bits to the lowest bits of four bytes.
    for (int i = 0; i < 16; ++i) {
      out[i] |= (((words[i] >> (4 * v) & 0xF) * 0x00204081u) & 0x01010101u) << v;
    }
  }
  memcpy(plane, out, 64);
}

// Blocks of 32 columns whose 16 bytes of nibbles are the planes already.
template <int TYPE>
void pack_small_blocks(const uint8_t* block, int64_t row_bytes, int64_t block_bytes,
                       int64_t blocks, int64_t size, uint8_t* planes) {
  constexpr int nibbles_at = TYPE == 3 ? 4 : TYPE == 6 ? 6 : TYPE == 7 ? 8 : 2;
  constexpr int bits_at = TYPE == 6 ? 2 : TYPE == 7 ? 4 : -1;
  for (int64_t from = 0; from < blocks; from += 4) {
    const int64_t left = blocks - from, count = left < 4 ? left : 4;
    const uint8_t* first = block + from * block_bytes;
    Words words;
    load_nibbles(first + nibbles_at, row_bytes, block_bytes, count, words);
    for (int64_t b = 0; b < count; ++b) {
      uint8_t* to = planes + (from + b) * size;
      memcpy(to, words.at[4 * b], 256);
      if constexpr (bits_at >= 0) {
        put_fifth_bits(first + b * block_bytes + bits_at, row_bytes, to + 256);
      }
    }
  }
}

template <int INDEX>
void pack_levels_of(const uint8_t* blocks, int64_t row_bytes, int64_t num_blocks,
                    uint8_t* planes) {
  constexpr Layout layout = kLayouts[INDEX];
  constexpr int64_t size = level_bytes(layout);
  if constexpr (layout.block == 32 && layout.bits != 8) {
    pack_small_blocks<layout.type_id>(blocks, row_bytes, layout.block_bytes, num_blocks, size,
                                      planes);
  } else {
    for (int64_t b = 0; b < num_blocks; ++b) {
      pack_block<layout.type_id>(blocks + b * layout.block_bytes, row_bytes, size,
                                 planes + b * (layout.block / kGroupColumns) * size);
    }
  }
}

template <int INDEX>
void pack_by_index(int index, const uint8_t* blocks, int64_t row_bytes, int64_t num_blocks,
                   uint8_t* planes) {
  if (index == INDEX) return pack_levels_of<INDEX>(blocks, row_bytes, num_blocks, planes);
  if constexpr (INDEX + 1 < static_cast<int>(sizeof(kLayouts) / sizeof(kLayouts[0]))) {
    pack_by_index<INDEX + 1>(index, blocks, row_bytes, num_blocks, planes);
  }
}

}  // namespace

void pack_levels(int index, const uint8_t* blocks, int64_t row_bytes, int64_t num_blocks,
                 uint8_t* planes) {
  pack_by_index<0>(index, blocks, row_bytes, num_blocks, planes);
}


}  // namespace IVL_VARIANT
}  // namespace ivl
