// How packed matrices lie in memory; the same for all instruction sets.
//
// A panel is 16 rows; a group is 32 neighbouring columns. A panel has two sections, each beginning
// on a cache line: the scales of all its columns, then the levels (the small integers) of all its
// groups. In both, what belongs to the 16 rows lies side by side, so that one load gives a number
// for each of them.
//
// Levels of one group are 8 vectors of 64 bytes; vector v has in bytes 4 * r to 4 * r + 3 the levels
// of row r, columns 4 * v to 4 * v + 3. They are stored in planes of 64 bytes:
//
//   4 bits   4 planes: vector v in the low halves of the bytes, vector v + 4 in the high halves
//   +1 bit   1 more plane: bit v of its bytes is the highest bit of vector v
//   +2 bits  2 more planes: plane h has vector 4 * h + j in bits 2 * j and 2 * j + 1
//   2 bits   2 planes as these; 3 bits: and one with the highest bit, as above
//   8 bits   8 planes, one for each vector
//
// A last panel of fewer than 16 rows is filled up with zeros.
#pragma once

#include <cstdint>

namespace ivl {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kGroupColumns = 32;

// What the scales of one block of columns are, 16 of each side by side; f16 is float16.
enum class Scaling {
  plain,         // d f16                               weight = d * (level - offset)
  plain_min,     // d f16, m f16                        weight = d * level + m
  nested_8,      // d f16, 8 x s int8                   weight = d * s * (level - offset)
  nested_16,     // d f16, 16 x s int8                  the same for groups of 16
  nested_min_8,  // d, dmin f16, 8 x (s, m) uint8       weight = d * s * level - dmin * m
  nested_min_16, // d, dmin f16, 16 x (s | m << 4)      the same for groups of 16
  zero_point,    // d f16, z uint8                      weight = d * (level - z)
};

struct Layout {
  int type_id;
  int64_t block;        // columns
  int64_t block_bytes;  // of one row, in the file
  int bits;
  int offset;
  bool table;  // levels point into the table of IQ4_NL
  Scaling scaling;
  int64_t scale_bytes;  // of one panel and block
};

constexpr Layout kLayouts[] = {
    {2, 32, 18, 4, 8, false, Scaling::plain, 32},             // Q4_0
    {3, 32, 20, 4, 0, false, Scaling::plain_min, 64},         // Q4_1
    {6, 32, 22, 5, 16, false, Scaling::plain, 32},            // Q5_0
    {7, 32, 24, 5, 0, false, Scaling::plain_min, 64},         // Q5_1
    {8, 32, 34, 8, 128, false, Scaling::plain, 32},           // Q8_0
    {10, 256, 84, 2, 0, false, Scaling::nested_min_16, 320},  // Q2_K
    {11, 256, 110, 3, 4, false, Scaling::nested_16, 288},     // Q3_K
    {12, 256, 144, 4, 0, false, Scaling::nested_min_8, 320},  // Q4_K
    {13, 256, 176, 5, 0, false, Scaling::nested_min_8, 320},  // Q5_K
    {14, 256, 210, 6, 32, false, Scaling::nested_16, 288},    // Q6_K
    {20, 32, 18, 4, 128, true, Scaling::plain, 32},           // IQ4_NL
    {23, 256, 136, 4, 128, true, Scaling::nested_8, 160},     // IQ4_XS
    {-1, 128, 68, 4, 0, false, Scaling::zero_point, 48},      // AWQ
};

static constexpr int layout_index(int type_id) {
  int found = -1, index = 0;
  for (const Layout& layout : kLayouts) {
    if (layout.type_id == type_id) found = index;
    ++index;
  }
  return found;
}

static constexpr int64_t level_bytes(const Layout& layout) { return layout.bits * 64; }
static constexpr int64_t scale_section(const Layout& layout, int64_t columns) {
  return (columns / layout.block * layout.scale_bytes + 63) / 64 * 64;
}
static constexpr int64_t panel_bytes(const Layout& layout, int64_t columns) {
  return scale_section(layout, columns) + columns / kGroupColumns * level_bytes(layout);
}

// The table of IQ4_NL and IQ4_XS, 128 added.
constexpr uint8_t kIq4Levels[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                    129, 141, 153, 166, 181, 197, 217, 241};

}  // namespace ivl
