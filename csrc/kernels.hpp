// What each instruction set offers: a table of kernels, which csrc/variant/ fills once for each set.
// Plain numbers and pointers only, and no function that is not inlined: this header is compiled with
// and without the flags of an instruction set.
#pragma once

#include <cstdint>

#include "dense.hpp"
#include "kv_layout.hpp"
#include "quantize.hpp"

namespace ivl {

// --- products with packed matrices (matmul.hpp) ---

// The activations of ivl::QuantizedRows.
struct RowsView {
  const int8_t* values;
  const float* scales;
  const float* weighted_sums;
  const int32_t* half_sums;
  int64_t num_rows, columns;
};

// One product, for the panels [first_panel, last_panel) of 16 rows of the matrix.
struct PanelTask {
  const uint8_t* packed;
  int type_id;
  int64_t rows, columns;
  int64_t first_panel, last_panel;
  const float* bias;
  void* out;
  Dtype out_dtype;
  int64_t out_stride;
  bool add;  // to what is in `out`, which is float32 then
};

struct MatmulKernels {
  // Quantizes groups [first_group, last_group) of rows [first_row, last_row), which must be whole
  // tiles, into their places. x points to the first of these groups in row 0.
  void (*quantize)(const void* x, Dtype dtype, int64_t row_stride, int64_t first_row,
                   int64_t last_row, int64_t num_rows, int64_t first_group, int64_t last_group,
                   int64_t num_groups, int8_t* values, float* scales, float* weighted_sums,
                   int32_t* half_sums);
  // Brings the levels of 16 rows, `row_bytes` apart from `blocks` on, to their planes: all of a
  // panel but its scales. The format is kLayouts[index].
  void (*pack_levels)(int index, const uint8_t* blocks, int64_t row_bytes, int64_t num_blocks,
                      uint8_t* planes);
  // Bytes that both products need beside, aligned to a cache line.
  int64_t (*scratch_bytes)(int64_t num_rows, int64_t columns);
  // For any number of rows of activations.
  void (*multiply)(const PanelTask& task, const RowsView& rows, uint8_t* scratch);
  // From `many_rows` rows on, unless it is null: for instructions that multiply whole tiles, and do
  // not pay for a few rows. An output must come out as from `multiply`, bit for bit, for it must not
  // depend on the batch that its row is in.
  void (*multiply_many)(const PanelTask& task, const RowsView& rows, uint8_t* scratch);
  int64_t many_rows;
};

// --- products with weights of 16 or 32 bits (float_matmul.hpp) ---

struct FloatTask {
  const void* weights;
  Dtype weights_dtype;
  int64_t rows, columns;
  const void* x;  // as `prepare` left it, or `round`
  int64_t num_rows;
  const float* bias;
  void* out;
  Dtype out_dtype;
  int64_t out_stride;  // numbers from one row of out to the next
  bool add;            // to what is in `out`, which is float32 then
};

struct FloatKernels {
  // Weight rows of one task.
  int64_t task_rows;
  // Up to so many rows of x the outputs of one do not depend on how many there are.
  int64_t few_rows;
  // Rows of x in one part of the preparation; it divides 12.
  int64_t part_rows;
  // float32 numbers that x takes when it is prepared.
  int64_t (*prepared_size)(int64_t num_rows, int64_t columns);
  // Parts of the preparation that may run at the same time, and one of them.
  int64_t (*num_preparations)(int64_t num_rows);
  void (*prepare)(const void* x, Dtype dtype, int64_t num_rows, int64_t columns, int64_t part,
                  float* prepared);
  int64_t (*scratch_bytes)(int64_t num_rows);
  // Weight rows [first, last), a multiple of 32 at first.
  void (*multiply)(const FloatTask& task, int64_t first, int64_t last, uint8_t* scratch);
};

// --- products with weights of bfloat16, by rows of bfloat16 (bfloat16_matmul.hpp) ---

// All null in a set that is compiled without such products.
struct Bfloat16Kernels {
  // Numbers from one rounded row to the next.
  int64_t (*row_stride)(int64_t columns);
  // Rounds columns [first, first + count) of rows [first_row, last_row) into their places; first is
  // a multiple of 32, and so is count, unless it is all that is left. x points to column `first` of
  // row 0.
  void (*round)(const void* x, Dtype dtype, int64_t row_stride_of_x, int64_t columns, int64_t first,
                int64_t count, int64_t first_row, int64_t last_row, uint16_t* rows);
  int64_t (*scratch_bytes)(int64_t num_rows, int64_t columns);
  // Weight rows [first, last), a multiple of 32 at first.
  void (*multiply)(const FloatTask& task, int64_t first, int64_t last, uint8_t* scratch);
  // The same for a few rows. Sums are in another order, the same for any number of rows.
  void (*multiply_few)(const FloatTask& task, int64_t first, int64_t last);
};

// --- the layers of a decoder (decoder.hpp) ---

struct PointwiseKernels {
  // out = x / rms(x) * weight, for one row.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t width, float* out);
  // gate = silu(gate) * up, for (rows, width) numbers, rows `stride` apart in both.
  void (*swiglu)(float* gate, const float* up, int64_t rows, int64_t width, int64_t stride);
};

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

// --- the vision tower (dense.hpp) ---

struct DensePackKernels {
  int64_t (*scratch_bytes)(const DensePack& pack);
  // Panel `panel` of the weights.
  void (*pack)(const DensePack& pack, int64_t panel, uint8_t* scratch);
};

struct DenseKernels {
  // Norms `num_rows` rows of x (rows, width) and writes them into `rows` from row `first` on.
  void (*prepare)(Dense type, const float* x, int64_t width, int64_t first, int64_t num_rows,
                  const NormArgs& norm, const DenseRows& rows);
  // Rows [row, row + num_rows) times panels [panel, panel + num_panels).
  void (*multiply)(const DenseProduct& product, int64_t row, int64_t num_rows, int64_t panel,
                   int64_t num_panels);
};

// By products of 16-bit numbers; both null in a set that is compiled without any.
struct TileAttentionKernels {
  // Fills the panels of one head: keys (positions up to 32, head_dim), values (head_dim, positions
  // up to 32); what is beyond the positions is zero.
  void (*pack_head)(const TileAttention& args, int64_t tile, int64_t head, uint16_t* keys,
                    uint16_t* values);
  // Queries [first, first + count) of one head, count <= 12.
  void (*attend)(const TileAttention& args, int64_t tile, int64_t head, int64_t first, int count,
                 const uint16_t* keys, const uint16_t* values);
  bool has_float16;  // also as for the products of `DenseKernels`
};

// --- what the processor can do at most (limits.cpp) ---

struct LimitKernels {
  // Reads all the bytes, a multiple of 512; the value has no meaning but to need them.
  uint64_t (*read_all)(const uint8_t* data, int64_t num_bytes);
  // Products of bytes whose operands are in registers, and how many operations a round has.
  float (*multiply_bytes)(int64_t rounds);
  int64_t (*operations_per_round)();
};

struct Kernels {
  const MatmulKernels& matmul;
  const FloatKernels& floats;
  const Bfloat16Kernels& bfloat16;
  const PointwiseKernels& pointwise;
  const AttentionKernels& attention;
  const DenseKernels& dense;
  const DensePackKernels& dense_pack;
  const TileAttentionKernels& tile_attention;
  const LimitKernels& limits;
  // Null for a format that the set has no codec for.
  const Codec* (*find_codec)(int type_id);
};

#if defined(IVL_VARIANT)
// Of the set that is being compiled; each is defined by the file of its subject.
namespace IVL_VARIANT {
void pack_levels(int index, const uint8_t* blocks, int64_t row_bytes, int64_t num_blocks,
                 uint8_t* planes);
const Codec* find_codec(int type_id);
extern const MatmulKernels matmul_kernels;
extern const FloatKernels float_kernels;
extern const Bfloat16Kernels bfloat16_kernels;
extern const PointwiseKernels pointwise_kernels;
extern const AttentionKernels attention_kernels;
extern const DenseKernels dense_kernels;
extern const DensePackKernels dense_pack_kernels;
extern const TileAttentionKernels tile_attention_kernels;
extern const LimitKernels limit_kernels;
extern const Kernels kernels;
}  // namespace IVL_VARIANT
#endif

}  // namespace ivl
