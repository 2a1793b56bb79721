// Products with dense weights of 8 or 16 bits, for many rows at once: the vision tower.
//
// y = x W^T in the tower is a product of 1025 rows (the positions of one tile) or more, so it is
// limited by arithmetic, and the arithmetic is cheapest in the narrowest type that is good enough:
//
//   int8     a row of activations has one scale, a row of weights another; sums are exact in int32
//   float16  AVX-512 FP16 multiplies 32 pairs at once. Sums of 32 products are kept in float16 and
//            then added up in float32. A row of activations is scaled so that nothing overflows.
//   bfloat16 AVX-512 BF16 multiplies 32 pairs at once, and adds them up in float32. Nothing is
//            scaled: it is the type that models come in.
//
// Weights lie in panels of 32 outputs: for each panel, for each unit of 4 bytes (4 int8 or 2
// 16-bit numbers) along the inputs, the units of its 32 outputs. One load then brings 16 outputs, and a
// broadcast of 4 bytes of the activations meets them all. Panels are filled up with zeros. int8
// weights are stored plus 128, because the instruction multiplies unsigned by signed; what that
// adds to a sum is 128 times the sum of the activations' row.
//
// Plain numbers and pointers only, as in kernels.hpp; dense_matrix.hpp has what owns them.
#pragma once

#include <cstdint>

#include "dtype.hpp"

namespace ivl {

constexpr int kPanel = 32;      // outputs of a panel
constexpr int kTileRows = 12;   // rows that are multiplied at once: 12 x 32 sums fill 24 registers
constexpr int kRowUnits = 64;   // rows of activations are filled up to a multiple of so many values

// The largest float16 weight: rows with larger ones are scaled down, for sums of 32 products to stay
// in that type's range.
constexpr float kFloat16Most = 100.0f;

enum class Dense : int { int8 = 0, float16 = 1, bfloat16 = 2 };
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
  void* values;     // (rows, stride), in the type of the product
  float* scales;    // (rows,): x = scale * value
  int32_t* sums;    // (rows,) of the int8 values; of no other type
  int64_t stride;   // in values, a multiple of kRowUnits; what is beyond the width is zero
};

struct DenseProduct {
  Dense type;
  DenseRows rows;
  const void* panels;          // of rows.stride columns
  const float* weight_scales;  // (outputs,), or null: 1
  const float* bias;           // (outputs,), or null
  int64_t outputs;
  float* out;                  // (rows, outputs)
  Epilogue epilogue;
  const float* channel_scales;  // (outputs,), for add_scaled: out += channel_scale * y
};

// Weights on their way into panels.
struct DensePack {
  Dense type;
  const void* weight;  // (rows, columns), without gaps
  Dtype dtype;
  int64_t rows, columns;
  int64_t stride;  // columns of the panels
  void* panels;
  float* scales;   // (rows,): weight = scale * value
};

// Attention of every position to every other, without a mask: the tower's.
struct TileAttention {
  Dense type;        // float16 or bfloat16
  const float* qkv;  // (tiles, positions, 3, heads, head_dim)
  float* out;        // (tiles, positions, heads, head_dim)
  int64_t tiles, positions, heads, head_dim;  // head_dim a multiple of 32
};
}  // namespace ivl
