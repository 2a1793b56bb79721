// This file is compiled without contraction to multiply-adds: weights must come out bit for bit as
// the reference in ivl.quant has them, which rounds after every operation.
#include "packing.hpp"

#include <cstring>

#include "blocks.hpp"
#include "float16.hpp"
#include "isa.hpp"
#include "memory.hpp"

namespace ivl {
namespace {

// --- scales of one block and row, to their places among those of the panel ---

uint8_t to_byte(int number) { return static_cast<uint8_t>(number); }

void put_half(const uint8_t* half, uint8_t* place, int row) { std::memcpy(place + 2 * row, half, 2); }

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
      for (int g = 0; g < 16; ++g) place[32 + 16 * g + row] = to_byte(q3_scale(block + 96, g));
      break;
    case 12: case 13:
      put_half(block, place, row);
      put_half(block + 2, place + 32, row);
      for (int g = 0; g < 8; ++g) {
        const ScaleAndMin pair = scale_and_min_of(block + 4, g);
        place[64 + 32 * g + row] = to_byte(pair.scale);
        place[80 + 32 * g + row] = to_byte(pair.min);
      }
      break;
    case 14:
      put_half(block + 208, place, row);
      for (int k = 0; k < 16; ++k) place[32 + 16 * k + row] = block[192 + k];
      break;
    case 23:
      put_half(block, place, row);
      for (int g = 0; g < 8; ++g) place[32 + 16 * g + row] = to_byte(iq4_xs_scale(block, g));
      break;
    case -1:
      put_half(block, place, row);
      place[32 + row] = block[2];
      break;
    default: put_half(block, place, row);
  }
}

// --- back from a panel ---

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
  const float d = float16_at(scales + 2 * row);
  const auto second = [&] { return float16_at(scales + 32 + 2 * row); };
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
  const uint8_t* row = blocks + panel * kPanelRows * row_bytes;
  Buffer whole;
  if (const int64_t in_panel = rows - panel * kPanelRows; in_panel < kPanelRows) {
    whole.reserve(static_cast<size_t>(kPanelRows * row_bytes));
    const size_t given = static_cast<size_t>(in_panel * row_bytes);
    std::memcpy(whole.data(), row, given);
    std::memset(whole.data() + given, 0, whole.size() - given);
    row = whole.data();
  }
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int i = 0; i < kPanelRows; ++i) {
      put_scales(layout.type_id, row + i * row_bytes + b * layout.block_bytes,
                 scales + b * layout.scale_bytes, i);
    }
  }
  kernels().matmul.pack_levels(layout_index(layout.type_id), row, row_bytes, num_blocks, planes);
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
      const int level = (layout.table ? kIq4Levels[stored] : stored) - offset;
      const float product = affine.scale * static_cast<float>(level);
      out[start + j] = layout.offset || zero_point ? product : product + affine.added;
    }
  }
}

}  // namespace ivl
