// Products with dense weights of 8 or 16 bits, for many rows at once: the vision tower.
//
// y = x W^T in the tower is a product of 1025 rows (the positions of one tile) or more, so it is
// limited by arithmetic, and the arithmetic is cheapest in the narrowest type that is good enough:
//
//   int8     a row of activations has one scale, a row of weights another; sums are exact in int32
//   float16  AVX-512 FP16 multiplies 32 pairs at once. Sums of 32 products are kept in float16 and
//            then added up in float32. A row of activations is scaled so that nothing overflows.
//
// Weights lie in panels of 32 outputs: for each panel, for each unit of 4 bytes (4 int8 or 2
// float16) along the inputs, the units of its 32 outputs. One load then brings 16 outputs, and a
// broadcast of 4 bytes of the activations meets them all. Panels are filled up with zeros. int8
// weights are stored plus 128, because the instruction multiplies unsigned by signed; what that
// adds to a sum is 128 times the sum of the activations' row.
#pragma once

#include <cstdint>

namespace ivl {

constexpr int kPanel = 32;      // outputs of a panel
constexpr int kTileRows = 12;   // rows that are multiplied at once: 12 x 32 sums fill 24 registers
constexpr int kRowUnits = 64;   // rows of activations are filled up to a multiple of so many values

enum class Dense : int { int8 = 0, float16 = 1 };
enum class Norm : int { none = 0, layer = 1, rms = 2 };
enum class Epilogue : int { store = 0, gelu = 1, add_scaled = 2 };

struct NormArgs {
  Norm kind;
  const float* weight;  // (width,), unless kind is none
  const float* bias;    // (width,), for layer
  float eps;
};

// Rows of activations in the type of the product.
struct DenseRows {
  void* values;     // (rows, stride), int8 or float16
  float* scales;    // (rows,): x = scale * value
  int32_t* sums;    // (rows,) of the int8 values; null for float16
  int64_t stride;   // in values, a multiple of kRowUnits; what is beyond the width is zero
};

struct DenseProduct {
  Dense type;
  DenseRows rows;
  int64_t num_rows, columns;   // columns of the panels: rows.stride
  const void* panels;
  const float* weight_scales;  // (outputs,), or null: 1
  const float* bias;           // (outputs,), or null
  int64_t outputs;
  float* out;                  // (num_rows, out_stride)
  int64_t out_stride;
  Epilogue epilogue;
  const float* channel_scales;  // (outputs,), for add_scaled: out += channel_scale * y
};

// Brings a weight (rows, columns) of `dtype` (as in GGUF files: 0 float32, 1 float16, 30 bfloat16)
// into panels of `stride` columns, on all threads. int8: the largest magnitude of a row becomes 127.
// float16: a row with a magnitude above `float16_most` is scaled down to it. scales (rows,).
void dense_pack(Dense type, const void* weight, int dtype, int64_t rows, int64_t columns,
                int64_t stride, float float16_most, void* panels, float* scales);

// What one instruction set offers.
struct DenseKernels {
  // Norms `num_rows` rows of x (rows, width) and writes them into `rows` from row `first` on.
  void (*prepare)(Dense type, const float* x, int64_t width, int64_t first, int64_t num_rows,
                  const NormArgs& norm, const DenseRows& rows);
  // Rows [row, row + num_rows) times panels [panel, panel + num_panels).
  void (*multiply)(const DenseProduct& product, int64_t row, int64_t num_rows, int64_t panel,
                   int64_t num_panels);
};

const DenseKernels& dense_kernels();

// Whether float16 products run on this machine and in the instruction set in use.
bool has_float16_products();

// Attention of every position to every other, without a mask: the tower's.
struct TileAttention {
  const float* qkv;  // (tiles, positions, 3, heads, head_dim)
  float* out;        // (tiles, positions, heads, head_dim)
  int64_t tiles, positions, heads, head_dim;  // head_dim a multiple of 32
};
void tile_attention(const TileAttention& args);  // needs float16 products

}  // namespace ivl
