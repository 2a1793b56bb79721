// This file is compiled without contraction to multiply-adds: weights must come out bit for bit as
// the reference in ivl.quant has them, which rounds after every operation.
#include "packing.hpp"

#include <cstring>

#include "select.hpp"
#include "variant/packing.hpp"

namespace ivl {
namespace {

const PackKernels& kernels() { IVL_SELECT(pack_kernels) }

constexpr uint32_t kNibbles = 0x0F0F0F0F, kPairs = 0x03030303, kOnes = 0x01010101;

uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

float float_of_float16(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7FFF;
  uint32_t bits = rest << 13;
  float x;
  if (rest >= 0x7C00) {
    bits |= 0x7F800000;
  } else {
    // Exact, for subnormal numbers too.
    std::memcpy(&x, &bits, 4);
    x *= 0x1p112f;
    std::memcpy(&bits, &x, 4);
  }
  bits |= sign;
  std::memcpy(&x, &bits, 4);
  return x;
}

// --- one block of one row, as ivl.quant describes it: its levels in order, not negative ---

void nibbles_16(const uint8_t* packed, uint8_t* levels) {
  for (int j = 0; j < 16; ++j) {
    levels[j] = packed[j] & 0x0F;
    levels[j + 16] = packed[j] >> 4;
  }
}

void nibbles_32(const uint8_t* packed, uint8_t* levels) {
  for (int plane = 0; plane < 4; ++plane) {
    for (int k = 0; k < 32; ++k) {
      levels[64 * plane + k] = packed[32 * plane + k] & 0x0F;
      levels[64 * plane + 32 + k] = packed[32 * plane + k] >> 4;
    }
  }
}

void add_bits(const uint8_t* packed, int shift, uint8_t* levels) {
  for (int b = 0; b < 8; ++b) {
    for (int k = 0; k < 32; ++k) levels[32 * b + k] |= ((packed[k] >> b) & 1) << shift;
  }
}

void add_pairs(const uint8_t* packed, int shift, uint8_t* levels) {
  for (int half = 0; half < 2; ++half) {
    for (int b = 0; b < 4; ++b) {
      for (int k = 0; k < 32; ++k) {
        levels[128 * half + 32 * b + k] |= ((packed[32 * half + k] >> (2 * b)) & 3) << shift;
      }
    }
  }
}

void add_word(const uint8_t* packed, uint8_t* levels) {
  const uint32_t word = word_at(packed);
  for (int j = 0; j < 32; ++j) levels[j] |= ((word >> j) & 1) << 4;
}

void levels_of_block(int type_id, const uint8_t* block, uint8_t* levels) {
  switch (type_id) {
    case 2: case 20: nibbles_16(block + 2, levels); break;
    case 3: nibbles_16(block + 4, levels); break;
    case 6: nibbles_16(block + 6, levels); add_word(block + 2, levels); break;
    case 7: nibbles_16(block + 8, levels); add_word(block + 4, levels); break;
    case 8:
      for (int j = 0; j < 32; ++j) levels[j] = block[2 + j] ^ 0x80;
      break;
    case 10: std::memset(levels, 0, 256); add_pairs(block + 16, 0, levels); break;
    case 11:
      std::memset(levels, 0, 256);
      add_pairs(block + 32, 0, levels);
      add_bits(block, 2, levels);
      break;
    case 12: nibbles_32(block + 16, levels); break;
    case 13: nibbles_32(block + 48, levels); add_bits(block + 16, 4, levels); break;
    case 14:
      for (int half = 0; half < 2; ++half) {
        for (int k = 0; k < 64; ++k) {
          levels[128 * half + k] = block[64 * half + k] & 0x0F;
          levels[128 * half + 64 + k] = block[64 * half + k] >> 4;
        }
      }
      add_pairs(block + 128, 4, levels);
      break;
    case 23:
      for (int g = 0; g < 8; ++g) nibbles_16(block + 8 + 16 * g, levels + 32 * g);
      break;
    default:  // AWQ
      for (int j = 0; j < 64; ++j) {
        levels[j] = block[4 + j] & 0x0F;
        levels[64 + j] = block[4 + j] >> 4;
      }
  }
}

// --- scales of one block and row, to their places among those of the panel ---

void put_half(const uint8_t* half, uint8_t* place, int row) { std::memcpy(place + 2 * row, half, 2); }

void put_pairs_of_6_bits(const uint8_t* packed, uint8_t* place, int row) {
  for (int k = 0; k < 4; ++k) {
    const uint8_t first = packed[k], second = packed[4 + k], rest = packed[8 + k];
    place[32 * k + row] = first & 63;
    place[32 * k + 16 + row] = second & 63;
    place[32 * (k + 4) + row] = static_cast<uint8_t>((rest & 0x0F) | ((first >> 6) << 4));
    place[32 * (k + 4) + 16 + row] = static_cast<uint8_t>((rest >> 4) | ((second >> 6) << 4));
  }
}

void put_scales_of_q3(const uint8_t* packed, uint8_t* place, int row) {
  for (int k = 0; k < 16; ++k) {
    const int low = k < 8 ? packed[k] & 0x0F : packed[k - 8] >> 4;
    const int top = (packed[8 + k % 4] >> (2 * (k / 4))) & 3;
    place[16 * k + row] = static_cast<uint8_t>((low | (top << 4)) - 32);
  }
}

void put_scales_of_iq4_xs(const uint8_t* block, uint8_t* place, int row) {
  for (int g = 0; g < 8; ++g) {
    const int low = (block[4 + g / 2] >> (4 * (g % 2))) & 0x0F;
    const int top = (block[2 + g / 4] >> (2 * (g % 4))) & 3;
    place[16 * g + row] = static_cast<uint8_t>((low | (top << 4)) - 32);
  }
}

void put_scales(int type_id, const uint8_t* block, uint8_t* place, int row) {
  switch (type_id) {
    case 3: case 7:
      put_half(block, place, row);
      put_half(block + 2, place + 32, row);
      break;
    case 10:
      put_half(block + 80, place, row);
      put_half(block + 82, place + 32, row);
      for (int k = 0; k < 16; ++k) place[64 + 16 * k + row] = block[k];
      break;
    case 11:
      put_half(block + 108, place, row);
      put_scales_of_q3(block + 96, place + 32, row);
      break;
    case 12: case 13:
      put_half(block, place, row);
      put_half(block + 2, place + 32, row);
      put_pairs_of_6_bits(block + 4, place + 64, row);
      break;
    case 14:
      put_half(block + 208, place, row);
      for (int k = 0; k < 16; ++k) place[32 + 16 * k + row] = block[192 + k];
      break;
    case 23:
      put_half(block, place, row);
      put_scales_of_iq4_xs(block, place + 32, row);
      break;
    case -1:
      put_half(block, place, row);
      place[32 + row] = block[2];
      break;
    default: put_half(block, place, row);
  }
}

// --- levels of one group of a panel: `row` points to the 32 levels of one row ---

void put_word(uint8_t* planes, int plane, int row, uint32_t word) {
  std::memcpy(planes + 64 * plane + 4 * row, &word, 4);
}

void put_levels(int bits, const uint8_t* levels, int row, uint8_t* planes) {
  uint32_t v[8];
  for (int i = 0; i < 8; ++i) v[i] = word_at(levels + 4 * i);
  if (bits == 8) {
    for (int i = 0; i < 8; ++i) put_word(planes, i, row, v[i]);
    return;
  }
  int plane = 0;
  if (bits >= 4) {
    for (; plane < 4; ++plane) {
      put_word(planes, plane, row, (v[plane] & kNibbles) | ((v[plane + 4] & kNibbles) << 4));
    }
  }
  const int low_bits = bits >= 4 ? 4 : 0;
  if (bits == 6 || bits <= 3) {
    for (int h = 0; h < 2; ++h) {
      uint32_t word = 0;
      for (int j = 0; j < 4; ++j) word |= ((v[4 * h + j] >> low_bits) & kPairs) << (2 * j);
      put_word(planes, plane++, row, word);
    }
  }
  if (bits == 5 || bits == 3) {
    uint32_t word = 0;
    for (int i = 0; i < 8; ++i) word |= ((v[i] >> (bits - 1)) & kOnes) << i;
    put_word(planes, plane, row, word);
  }
}

int level_at(int bits, const uint8_t* planes, int row, int column) {
  const int v = column / 4, byte = 4 * row + column % 4;
  if (bits == 8) return planes[64 * v + byte];
  int level = 0;
  if (bits >= 4) {
    level = (planes[64 * (v % 4) + byte] >> (4 * (v / 4))) & 0x0F;
    planes += 256;
  }
  if (bits == 6 || bits <= 3) {
    const int pair = (planes[64 * (v / 4) + byte] >> (2 * (v % 4))) & 3;
    level |= pair << (bits == 6 ? 4 : 0);
    planes += 128;
  }
  if (bits == 5 || bits == 3) level |= ((planes[byte] >> v) & 1) << (bits - 1);
  return level;
}

// --- the scale and what is added, of 16 columns: weight = scale * level + added, twice rounded ---

struct Affine {
  float scale, added;
};

Affine affine_at(Scaling scaling, const uint8_t* scales, int row, int half) {
  const float d = float_of_float16(scales + 2 * row);
  const auto second = [&] { return float_of_float16(scales + 32 + 2 * row); };
  const auto integer = [&](int64_t at) { return static_cast<int8_t>(scales[at + row]); };
  switch (scaling) {
    case Scaling::plain: return {d, 0.0f};
    case Scaling::plain_min: return {d, second()};
    case Scaling::nested_8: return {d * integer(32 + 16 * (half / 2)), 0.0f};
    case Scaling::nested_16: return {d * integer(32 + 16 * half), 0.0f};
    case Scaling::nested_min_8: {
      const int64_t at = 64 + 32 * (half / 2);
      return {d * integer(at), -(second() * integer(at + 16))};
    }
    case Scaling::nested_min_16: {
      const uint8_t both = scales[64 + 16 * half + row];
      return {d * static_cast<float>(both & 0x0F), -(second() * static_cast<float>(both >> 4))};
    }
    default: return {d, 0.0f};
  }
}

}  // namespace

void pack_panel(const Layout& layout, const uint8_t* blocks, int64_t rows, int64_t columns,
                int64_t panel, uint8_t* packed) {
  const int64_t num_blocks = columns / layout.block, row_bytes = num_blocks * layout.block_bytes;
  uint8_t* scales = packed + panel * panel_bytes(layout, columns);
  uint8_t* planes = scales + scale_section(layout, columns);
  const int64_t first = panel * kPanelRows;
  const int in_panel = static_cast<int>(rows - first < kPanelRows ? rows - first : kPanelRows);
  if (in_panel == kPanelRows) {
    const uint8_t* row = blocks + first * row_bytes;
    for (int64_t b = 0; b < num_blocks; ++b) {
      for (int i = 0; i < kPanelRows; ++i) {
        put_scales(layout.type_id, row + i * row_bytes + b * layout.block_bytes,
                   scales + b * layout.scale_bytes, i);
      }
    }
    kernels().pack_levels(layout_index(layout.type_id), row, row_bytes, num_blocks, planes);
    return;
  }
  std::memset(scales, 0, panel_bytes(layout, columns));
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int row = 0; row < in_panel; ++row) {
      const uint8_t* block = blocks + (first + row) * row_bytes + b * layout.block_bytes;
      uint8_t levels[256];
      levels_of_block(layout.type_id, block, levels);
      put_scales(layout.type_id, block, scales + b * layout.scale_bytes, row);
      for (int64_t g = 0; g < layout.block / kGroupColumns; ++g) {
        const int64_t group = b * (layout.block / kGroupColumns) + g;
        put_levels(layout.bits, levels + kGroupColumns * g, row,
                   planes + group * level_bytes(layout));
      }
    }
  }
}

void unpack_row(const Layout& layout, const uint8_t* packed, int64_t columns, int64_t row,
                float* out) {
  const uint8_t* scales = packed + row / kPanelRows * panel_bytes(layout, columns);
  const uint8_t* planes = scales + scale_section(layout, columns);
  const int lane = static_cast<int>(row % kPanelRows);
  for (int64_t start = 0; start < columns; start += 16) {
    const uint8_t* of_block = scales + start / layout.block * layout.scale_bytes;
    const int half = static_cast<int>(start % layout.block / 16);
    const Affine affine = affine_at(layout.scaling, of_block, lane, half);
    const bool zero_point = layout.scaling == Scaling::zero_point;
    const int offset = zero_point ? of_block[32 + lane] : layout.offset;
    const uint8_t* group = planes + start / kGroupColumns * level_bytes(layout);
    for (int j = 0; j < 16; ++j) {
      const int stored = level_at(layout.bits, group, lane, static_cast<int>(start % 32) + j);
      const int level = (layout.table ? kTable[stored] : stored) - offset;
      const float product = affine.scale * static_cast<float>(level);
      out[start + j] = layout.offset || zero_point ? product : product + affine.added;
    }
  }
}

}  // namespace ivl
