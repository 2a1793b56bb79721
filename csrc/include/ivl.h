/* What the library does: products with weights that stay quantized, the layers of a decoder over a
 * cache of keys and values, the products of a vision tower, and turning weights into blocks and back,
 * on a processor. This is C, and all that a program needs to know of csrc/; src/ivl reaches it
 * through csrc/python.cpp. docs/kernels.md tells how it works.
 *
 * Handles are opaque, and freed by the function that is named after them; null may be freed. Arrays
 * are without gaps, the last axis first; unless a function says so, they are aligned to their numbers
 * and not kept. A handle may be used by several threads at once, but for `ivl_rows`.
 *
 * Functions that can fail return a status, and leave their results alone then. They check numbers
 * that they would otherwise read or write outside of an array by; that arrays are as long as is said
 * here they cannot see. Results depend on the instruction set, and on nothing else: not on the number
 * of threads, nor on what else a batch holds. */
#ifndef IVL_H
#define IVL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ---- */

typedef enum ivl_status {
  IVL_OK = 0,
  IVL_INVALID = 1,       /* an argument that makes no sense */
  IVL_OUT_OF_RANGE = 2,  /* the number of a row that is not there */
  IVL_OUT_OF_MEMORY = 3,
  IVL_FAILED = 4,
} ivl_status;

/* What went wrong in the last call of this thread that failed: a phrase in English, without a full
 * stop. The text is there until the thread's next call. */
const char* ivl_error(void);

/* ---- instruction sets ---- */

/* The sets that this library has and this processor runs, the slowest first; null from the end on. */
const char* ivl_usable_isa(size_t index);
/* The one in use: the last of them, unless another was chosen. */
const char* ivl_isa(void);
/* False, and nothing changed, for a set that is not usable. Calls that run go on with theirs. */
bool ivl_use_isa(const char* name);

/* ---- threads ---- */

/* How many threads a call may use, at least 1; 1 at first. Calls that run go on with theirs. */
int ivl_num_threads(void);
void ivl_set_num_threads(int count);
/* Computes on the threads of the OpenMP library at `path`, which must be GNU's and loaded into this
 * process already; an empty path goes back to threads of the library's own. False, and nothing
 * changed, when that is not so, and in a process that was forked. */
bool ivl_use_openmp(const char* path);
const char* ivl_thread_pool(void); /* "openmp" or "own" */

/* ---- what the machine can do at most, measured on all threads ---- */

/* Bytes a second, read once through `num_bytes` of memory. */
ivl_status ivl_read_bandwidth(int64_t num_bytes, double* out);
/* Operations a second, two for a product of bytes that is added up. */
ivl_status ivl_byte_products(int64_t rounds, double* out);

/* ---- numbers, and blocks of quantized weights ---- */

typedef enum ivl_dtype { /* the numbers are those of GGUF files (ggml_type) */
  IVL_FLOAT32 = 0,
  IVL_FLOAT16 = 1,
  IVL_BFLOAT16 = 30,
} ivl_dtype;

/* Block formats go by their number in GGUF files; AWQ has none there, and is -1 here. */

/* Weights and bytes of a block. Fails for formats that ivl_decode, or with `to_encode` ivl_encode,
 * does not know. */
ivl_status ivl_block_shape(int type_id, bool to_encode, int64_t* block_size, int64_t* block_bytes);

/* What some weights are, as bits: of a magnitude of `limit` or more; not finite. What is written for
 * these means nothing. */
enum { IVL_RANGE_EXCEEDED = 1, IVL_NOT_FINITE = 2 };

/* weights (count, block_size) -> blocks (count, block_bytes). importance (period, block_size), or
 * null: block b has row b % period of it. `flags`: of all weights. */
ivl_status ivl_encode(int type_id, const float* weights, int64_t count, const float* importance,
                      int64_t period, float limit, uint8_t* blocks, int* flags);
/* blocks (count, block_bytes), aligned or not -> weights (count, block_size). */
ivl_status ivl_decode(int type_id, const uint8_t* blocks, int64_t count, float* weights);

/* ---- products with quantized matrices: y = x W^T + bias ---- */

/* A matrix (rows, columns) of blocks, rearranged; 16 rows side by side. */
typedef struct ivl_matrix ivl_matrix;

bool ivl_matrix_supports(int type_id);
/* Bytes of a row of blocks. Fails for a format that is not supported, and for columns that blocks do
 * not divide. */
ivl_status ivl_matrix_row_bytes(int type_id, int64_t columns, int64_t* out);

/* Some rows of a matrix, one after the other. */
typedef struct ivl_part {
  const uint8_t* blocks;
  int64_t rows;
} ivl_part;

enum { IVL_PART_ROWS = 16 };

/* The rows of all parts; those of a part that is not the last are a multiple of IVL_PART_ROWS. */
ivl_status ivl_matrix_new(int type_id, int64_t columns, const ivl_part* parts, size_t num_parts,
                          ivl_matrix** out);
void ivl_matrix_free(ivl_matrix* matrix);
int64_t ivl_matrix_rows(const ivl_matrix* matrix);
int64_t ivl_matrix_columns(const ivl_matrix* matrix);
size_t ivl_matrix_num_bytes(const ivl_matrix* matrix);

/* x (num_rows, columns) -> out (num_rows, rows); both may be unaligned. bias (rows,), or null.
 * Activations are rounded to 8 bits, with a scale for each 32 of them. */
ivl_status ivl_matrix_multiply(const ivl_matrix* matrix, const void* x, ivl_dtype x_dtype,
                               int64_t num_rows, const float* bias, void* out, ivl_dtype out_dtype);
/* Rows `ids` (count,) as float32 (count, columns), bit for bit as ivl.quant decodes them. */
ivl_status ivl_matrix_rows_at(const ivl_matrix* matrix, const int64_t* ids, int64_t count,
                              float* out);

/* The same product with plain numbers, weights (rows, columns), and sums in float32. weights, x and
 * out may be unaligned. */
ivl_status ivl_float_multiply(const void* weights, ivl_dtype weights_dtype, int64_t rows,
                              int64_t columns, const void* x, ivl_dtype x_dtype, int64_t num_rows,
                              const float* bias, void* out, ivl_dtype out_dtype);

/* ---- keys and values ---- */

typedef enum ivl_kv_type { IVL_KV_FLOAT32 = 0, IVL_KV_FLOAT16 = 1, IVL_KV_INT8 = 2 } ivl_kv_type;

/* Blocks of 32 tokens in each of some layers. Holds no memory: the caller's stays as long. */
typedef struct ivl_store ivl_store;

enum { IVL_BLOCK_TOKENS = 32, IVL_HEAD_UNIT = 32 };

/* Bytes of a block of one layer. head_dim is a multiple of IVL_HEAD_UNIT. */
ivl_status ivl_store_block_bytes(ivl_kv_type type, int64_t kv_heads, int64_t head_dim, int64_t* out);
/* layers: for each the bytes (num_blocks, block bytes), aligned to 4. */
ivl_status ivl_store_new(ivl_kv_type type, int64_t kv_heads, int64_t head_dim, uint8_t* const* layers,
                         size_t num_layers, int64_t num_blocks, ivl_store** out);
void ivl_store_free(ivl_store* store);

/* ---- the layers of a decoder (Qwen2, InternLM2, Llama) ---- */

/* Holds no weights: the caller's stay as long. One call at a time computes; others wait for it. */
typedef struct ivl_decoder ivl_decoder;

typedef struct ivl_decoder_shape {
  int64_t hidden, heads, kv_heads, head_dim, intermediate;
  float norm_eps;
} ivl_decoder_shape;

/* y = x W^T + bias. */
typedef struct ivl_linear {
  const ivl_matrix* matrix; /* or, when it is null: */
  const void* numbers;      /* (outputs, inputs) */
  ivl_dtype dtype;
  const float* bias;        /* (outputs,), or null */
} ivl_linear;

typedef struct ivl_layer {
  const float* attn_norm; /* (hidden,) */
  ivl_linear q, k, v, o;
  const float* ffn_norm;  /* (hidden,) */
  ivl_linear gate, up, down;
} ivl_layer;

/* Tokens of one sequence that are read together: they follow `length` tokens, and what is known of
 * all of them lies in its blocks. */
typedef struct ivl_segment {
  int64_t num_tokens, length;
  const int32_t* blocks;
  size_t num_blocks;
} ivl_segment;

/* Fails for a shape that no decoder can have: head_dim is a multiple of IVL_HEAD_UNIT, heads of
 * kv_heads. */
ivl_status ivl_decoder_check(const ivl_decoder_shape* shape);
/* norm (hidden,): behind the last layer; or null. */
ivl_status ivl_decoder_new(const ivl_decoder_shape* shape, const ivl_layer* layers, size_t num_layers,
                           const float* norm, ivl_decoder** out);
void ivl_decoder_free(ivl_decoder* decoder);

/* Hidden values x (num_rows, hidden) of all segments, one after another, become those behind the last
 * layer. cos, sin (num_rows, head_dim). Keys and values go to the store. of_prompt: all segments are
 * chunks of prompts, whose tokens come out the same wherever they are cut. */
ivl_status ivl_decoder_extend(ivl_decoder* decoder, float* x, int64_t num_rows, const float* cos,
                              const float* sin, const ivl_segment* segments, size_t num_segments,
                              const ivl_store* store, bool of_prompt);
/* One layer's attention without its products: q (num_rows, heads * head_dim), k and v (num_rows,
 * kv_heads * head_dim), with their biases. q and k are rotated in place. out as q. */
ivl_status ivl_decoder_attend(ivl_decoder* decoder, int64_t layer, float* q, float* k, const float* v,
                              int64_t num_rows, const float* cos, const float* sin,
                              const ivl_segment* segments, size_t num_segments,
                              const ivl_store* store, bool of_prompt, float* out);

/* ---- the vision tower: products with dense weights of 8 or 16 bits, for many rows at once ---- */

typedef enum ivl_arithmetic {
  IVL_INT8_PRODUCTS = 0,
  IVL_FLOAT16_PRODUCTS = 1,
  IVL_BFLOAT16_PRODUCTS = 2,
} ivl_arithmetic;

/* Whether there are such products on this processor, in the instruction set in use. */
bool ivl_has_float16_products(void);
bool ivl_has_bfloat16_products(void);

/* A weight (outputs, inputs) in panels, with its bias. */
typedef struct ivl_panels ivl_panels;
/* Activations (num_rows, width) in the type of a product. Memory is kept from `fill` to `fill`. */
typedef struct ivl_rows ivl_rows;

/* Some rows of a weight. */
typedef struct ivl_dense_part {
  const void* numbers; /* (rows, inputs), aligned or not */
  ivl_dtype dtype;
  int64_t rows;
} ivl_dense_part;

enum { IVL_PANEL_OUTPUTS = 32 };

typedef enum ivl_norm_kind { IVL_NO_NORM = 0, IVL_LAYER_NORM = 1, IVL_RMS_NORM = 2 } ivl_norm_kind;

typedef struct ivl_norm {
  ivl_norm_kind kind;
  const float* weight; /* (width,), unless there is no norm */
  const float* bias;   /* (width,), or null */
  float eps;
} ivl_norm;

/* The rows of all parts; those of a part that is not the last are a multiple of IVL_PANEL_OUTPUTS.
 * All is copied. */
ivl_status ivl_panels_new(ivl_arithmetic arithmetic, int64_t inputs, const ivl_dense_part* parts,
                          size_t num_parts, const float* bias, ivl_panels** out);
void ivl_panels_free(ivl_panels* panels);
int64_t ivl_panels_outputs(const ivl_panels* panels);
size_t ivl_panels_num_bytes(const ivl_panels* panels);

ivl_status ivl_rows_new(ivl_arithmetic arithmetic, ivl_rows** out);
void ivl_rows_free(ivl_rows* rows);
int64_t ivl_rows_count(const ivl_rows* rows);
/* x (num_rows, width), at least one row, is normed, and rounded with a scale for each row. */
ivl_status ivl_rows_fill(ivl_rows* rows, const float* x, int64_t num_rows, int64_t width,
                         const ivl_norm* norm);

/* out (rows, outputs) = rows W^T + bias, with GELU (erf) if it is asked for. */
ivl_status ivl_panels_multiply(const ivl_panels* panels, const ivl_rows* rows, bool gelu, float* out);
/* out (rows, outputs) += channel_scales (outputs,) * (rows W^T + bias). */
ivl_status ivl_panels_add_scaled(const ivl_panels* panels, const ivl_rows* rows,
                                 const float* channel_scales, float* out);

/* Attention of every position of a tile to every other, by products of 16 bits: qkv (tiles,
 * positions, 3, heads, head_dim) -> out (tiles, positions, heads, head_dim). head_dim is a multiple
 * of IVL_PANEL_OUTPUTS. */
ivl_status ivl_tile_attention(ivl_arithmetic arithmetic, const float* qkv, int64_t tiles,
                              int64_t positions, int64_t heads, int64_t head_dim, float* out);

/* ---- for tests ---- */

/* x (num_rows, columns) as products round it: values as x, scales (num_rows, columns / 32). */
ivl_status ivl_quantize_rows(const float* x, int64_t num_rows, int64_t columns, int8_t* values,
                             float* scales);
/* Runs `num_tasks` tasks in each of `phases` phases, or in none, and counts those that did not run
 * once. Task `failing` of the last phase fails, with IVL_INVALID; none if it is negative. */
ivl_status ivl_run_tasks(int64_t num_tasks, int64_t failing, int64_t phases, int64_t* not_run_once);
/* Lets one allocation fail: the next but `after`; none when it is negative. */
void ivl_fail_allocation(int64_t after);

#ifdef __cplusplus
}
#endif

#endif
