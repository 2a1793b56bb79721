/* include/ivl.h from C, without Python: what handles are made of, and what a caller may get wrong. */
#include "ivl.h"

#include <math.h>
#include <string.h>

enum { ROWS = 40, COLUMNS = 64, BLOCKS = ROWS * COLUMNS / 32, HIDDEN = 32 };

#define CHECK(holds) \
  if (!(holds)) return #holds

static const char* matrices(void) {
  static float weights[ROWS * COLUMNS], x[COLUMNS], y[ROWS], row[COLUMNS];
  static uint8_t blocks[BLOCKS * 34];
  for (int i = 0; i < ROWS * COLUMNS; ++i) weights[i] = (float)(i % 7 - 3);
  for (int i = 0; i < COLUMNS; ++i) x[i] = 1.0f;
  int64_t size, bytes, id = ROWS;
  int flags;
  CHECK(ivl_block_shape(8, true, &size, &bytes) == IVL_OK && size == 32 && bytes == 34);
  CHECK(ivl_block_shape(99, false, &size, &bytes) == IVL_INVALID && strstr(ivl_error(), "type_id"));
  CHECK(ivl_encode(8, weights, BLOCKS, NULL, 1, 1e30f, blocks, &flags) == IVL_OK && flags == 0);
  const ivl_part part = {blocks, ROWS};
  ivl_matrix* matrix = NULL;
  CHECK(ivl_matrix_new(8, COLUMNS - 1, &part, 1, &matrix) == IVL_INVALID && matrix == NULL);
  ivl_fail_allocation(0);
  CHECK(ivl_matrix_new(8, 1 << 24, &part, 1, &matrix) == IVL_OUT_OF_MEMORY && matrix == NULL);
  ivl_fail_allocation(-1);
  CHECK(ivl_matrix_new(8, COLUMNS, &part, 1, &matrix) == IVL_OK);
  CHECK(ivl_matrix_rows(matrix) == ROWS && ivl_matrix_columns(matrix) == COLUMNS);
  CHECK(ivl_matrix_multiply(matrix, x, IVL_FLOAT32, 1, NULL, y, IVL_FLOAT32) == IVL_OK);
  for (int i = 0; i < ROWS; ++i) {
    float sum = 0;
    for (int k = 0; k < COLUMNS; ++k) sum += weights[i * COLUMNS + k];
    CHECK(fabsf(y[i] - sum) < 0.5f);
  }
  CHECK(ivl_matrix_rows_at(matrix, &id, 1, row) == IVL_OUT_OF_RANGE);
  id = ROWS - 1;
  CHECK(ivl_matrix_rows_at(matrix, &id, 1, row) == IVL_OK);
  CHECK(fabsf(row[0] - weights[id * COLUMNS]) < 0.05f);
  ivl_matrix_free(matrix);
  ivl_matrix_free(NULL);
  return NULL;
}

static const char* decoders(void) {
  static float weight[2 * HIDDEN * HIDDEN], norm[HIDDEN], x[HIDDEN], angle[HIDDEN];
  static uint8_t memory[2 * HIDDEN * IVL_BLOCK_TOKENS * 4];
  const ivl_linear linear = {NULL, weight, IVL_FLOAT32, NULL};
  const ivl_layer layer = {norm, linear, linear, linear, linear, norm, linear, linear, linear};
  ivl_decoder_shape shape = {HIDDEN, 1, 1, HIDDEN, HIDDEN, 1e-6f};
  ivl_decoder* decoder = NULL;
  ivl_store* store = NULL;
  uint8_t* layers[] = {memory};
  int64_t bytes;
  CHECK(ivl_store_block_bytes(IVL_KV_FLOAT32, 1, HIDDEN, &bytes) == IVL_OK);
  CHECK(bytes == (int64_t)sizeof memory);
  CHECK(ivl_store_new(IVL_KV_FLOAT32, 1, HIDDEN, layers, 1, 1, &store) == IVL_OK);
  CHECK(ivl_decoder_new(&shape, &layer, 1, NULL, &decoder) == IVL_OK);
  x[3] = 2.0f;
  int32_t block = 0;
  ivl_segment segment = {1, 0, &block, 1};
  CHECK(ivl_decoder_extend(decoder, x, 1, angle, angle, &segment, 1, store, false) == IVL_OK);
  CHECK(x[3] == 2.0f); /* all weights are zeros */
  block = 1;
  CHECK(ivl_decoder_extend(decoder, x, 1, angle, angle, &segment, 1, store, false) == IVL_INVALID);
  CHECK(strstr(ivl_error(), "no block 1 among 1"));
  ivl_decoder_free(decoder);
  ivl_store_free(store);
  shape.kv_heads = 0;
  CHECK(ivl_decoder_check(&shape) == IVL_INVALID);
  return NULL;
}

const char* test_header(void);
const char* test_header(void) {
  CHECK(strcmp(ivl_usable_isa(0), "portable") == 0);
  CHECK(!ivl_use_isa("none such") && strcmp(ivl_isa(), "none such") != 0);
  const char* wrong = matrices();
  return wrong ? wrong : decoders();
}
