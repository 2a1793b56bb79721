// The functions of include/ivl.h over the classes of the other files: checks what a caller may get
// wrong, and turns exceptions into statuses.
#include "ivl.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "allocate.hpp"
#include "bfloat16_matmul.hpp"
#include "decoder.hpp"
#include "dense_matrix.hpp"
#include "float_matmul.hpp"
#include "isa.hpp"
#include "limits.hpp"
#include "matmul.hpp"
#include "quantize.hpp"
#include "threads.hpp"

struct ivl_matrix : ivl::PackedMatrix {
  using PackedMatrix::PackedMatrix;
};
struct ivl_store {
  ivl::CacheView view;
  int64_t num_blocks, kv_heads, head_dim;
};
struct ivl_decoder : ivl::Decoder {
  using Decoder::Decoder;
};
struct ivl_panels : ivl::DenseMatrix {
  using DenseMatrix::DenseMatrix;
};
struct ivl_rows : ivl::DenseActivations {
  using DenseActivations::DenseActivations;
};

namespace {

static_assert(IVL_PART_ROWS == ivl::PackedMatrix::kPartRows);
static_assert(IVL_PANEL_OUTPUTS == ivl::kPanel);
static_assert(IVL_BLOCK_TOKENS == ivl::kBlockTokens && IVL_HEAD_UNIT == ivl::kScaleGroup);
static_assert(int{IVL_RANGE_EXCEEDED} == int{ivl::kOutOfRange});
static_assert(int{IVL_NOT_FINITE} == int{ivl::kNotFinite});

thread_local char message[256];  // no string: there may be no memory for one

ivl_status failed(ivl_status status, const char* what) {
  std::snprintf(message, sizeof message, "%s", what);
  return status;
}

template <class Body>
ivl_status guarded(Body&& body) noexcept {
  try {
    body();
    return IVL_OK;
  } catch (const std::bad_alloc&) {
    return failed(IVL_OUT_OF_MEMORY, "there is not enough memory");
  } catch (const std::invalid_argument& error) {
    return failed(IVL_INVALID, error.what());
  } catch (const std::out_of_range& error) {
    return failed(IVL_OUT_OF_RANGE, error.what());
  } catch (const std::exception& error) {
    return failed(IVL_FAILED, error.what());
  } catch (...) {
    return failed(IVL_FAILED, "an exception of an unknown kind");
  }
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// One of the first `count` values of an enumeration.
template <class Enum>
Enum checked(int number, int count, const char* name) {
  if (number >= 0 && number < count) return static_cast<Enum>(number);
  throw std::invalid_argument(std::string(name) + ": " + std::to_string(number) + " is none of " +
                              std::to_string(count));
}

ivl::Dtype dtype_of(ivl_dtype number) {
  require(number == IVL_FLOAT32 || number == IVL_FLOAT16 || number == IVL_BFLOAT16,
          "a type of numbers that is none");
  return static_cast<ivl::Dtype>(number);
}

const ivl::Codec& codec_of(int type_id, bool to_encode) {
  const ivl::Codec* codec = ivl::kernels().find_codec(type_id);
  require(codec, "type_id: no format that is read");
  require(codec->encode || !to_encode, "type_id: no format that is written");
  return *codec;
}

ivl::DecoderShape shape_of(const ivl_decoder_shape& given) {
  const ivl::DecoderShape shape = {given.hidden,   given.heads,        given.kv_heads,
                                   given.head_dim, given.intermediate, given.norm_eps};
  for (int64_t size : {shape.hidden, shape.heads, shape.kv_heads, shape.head_dim,
                       shape.intermediate}) {
    // Far above any model, and no product of two of them overflows.
    require(size >= 1 && size < (int64_t{1} << 24), "a width of the decoder is no such number");
  }
  require(shape.head_dim % ivl::kScaleGroup == 0, "head_dim: not a multiple of 32");
  require(shape.heads % shape.kv_heads == 0, "heads: not in equal groups");
  return shape;
}

ivl::Linear linear_of(const ivl_linear& given, int64_t rows, int64_t columns, const char* name) {
  if (given.matrix && (given.matrix->rows() != rows || given.matrix->columns() != columns)) {
    throw std::invalid_argument(std::string(name) + ": a matrix (" + std::to_string(rows) + ", " +
                                std::to_string(columns) + ") is wanted");
  }
  require(given.matrix || given.numbers, "a layer has no weight");
  return {given.matrix, given.numbers, dtype_of(given.dtype), rows, columns, given.bias};
}

ivl::DecoderLayer layer_of(const ivl_layer& given, const ivl::DecoderShape& shape) {
  const int64_t hidden = shape.hidden, inner = shape.intermediate;
  const int64_t q_width = shape.q_width(), kv_width = shape.kv_width();
  return {given.attn_norm,
          linear_of(given.q, q_width, hidden, "q"),
          linear_of(given.k, kv_width, hidden, "k"),
          linear_of(given.v, kv_width, hidden, "v"),
          linear_of(given.o, hidden, q_width, "o"),
          given.ffn_norm,
          linear_of(given.gate, inner, hidden, "gate"),
          linear_of(given.up, inner, hidden, "up"),
          linear_of(given.down, hidden, inner, "down")};
}

// Segments of which all that will be read and written lies in the store.
std::vector<ivl::Segment> segments_of(const ivl_segment* given, size_t count, int64_t num_rows,
                                      const ivl_store& store) {
  std::vector<ivl::Segment> segments;
  segments.reserve(count);
  int64_t left = num_rows;
  for (const ivl_segment* s = given; s != given + count; ++s) {
    require(s->num_tokens >= 0 && s->num_tokens <= left,
            "segments: not as many tokens as there are rows");
    left -= s->num_tokens;
    const int64_t room = static_cast<int64_t>(s->num_blocks) * ivl::kBlockTokens;
    if (s->length < 0 || s->length > room - s->num_tokens) {
      throw std::invalid_argument("segments: " + std::to_string(s->num_tokens) +
                                  " tokens behind " + std::to_string(s->length) +
                                  " have no room in " + std::to_string(s->num_blocks) + " blocks");
    }
    for (size_t i = 0; i < s->num_blocks; ++i) {
      if (s->blocks[i] < 0 || s->blocks[i] >= store.num_blocks) {
        throw std::invalid_argument("segments: there is no block " + std::to_string(s->blocks[i]) +
                                    " among " + std::to_string(store.num_blocks));
      }
    }
    segments.push_back({s->num_tokens, s->length, s->blocks});
  }
  require(left == 0, "segments: not as many tokens as there are rows");
  return segments;
}

void check_store(const ivl_decoder& decoder, const ivl_store& store) {
  const ivl::DecoderShape& shape = decoder.shape();
  require(store.kv_heads == shape.kv_heads && store.head_dim == shape.head_dim,
          "store: made for other heads");
  require(static_cast<int64_t>(store.view.layers.size()) >= decoder.num_layers(),
          "store: has fewer layers than the decoder");
}

int64_t block_bytes(ivl::KVType type, int64_t kv_heads, int64_t head_dim) {
  require(kv_heads >= 1, "kv_heads: there are none");
  require(head_dim >= 1 && head_dim % ivl::kScaleGroup == 0, "head_dim: not a multiple of 32");
  return kv_heads * ivl::KVLayout{type, head_dim}.head_bytes();
}

ivl::KVType kv_type_of(ivl_kv_type number) { return checked<ivl::KVType>(number, 3, "type"); }

}  // namespace

extern "C" {

const char* ivl_error(void) { return message; }

const char* ivl_usable_isa(size_t index) {
  const auto& usable = ivl::usable_isas();
  return index < usable.size() ? usable[index]->name : nullptr;
}
const char* ivl_isa(void) { return ivl::current_isa().name; }
bool ivl_use_isa(const char* name) { return ivl::use_isa(name); }

int ivl_num_threads(void) { return ivl::num_threads(); }
void ivl_set_num_threads(int count) { ivl::set_num_threads(count); }
bool ivl_use_openmp(const char* path) { return ivl::use_openmp(path); }
const char* ivl_thread_pool(void) { return ivl::thread_pool(); }

ivl_status ivl_read_bandwidth(int64_t num_bytes, double* out) {
  return guarded([&] { *out = ivl::read_bandwidth(num_bytes); });
}
ivl_status ivl_byte_products(int64_t rounds, double* out) {
  return guarded([&] { *out = ivl::byte_products(rounds); });
}

ivl_status ivl_block_shape(int type_id, bool to_encode, int64_t* block_size,
                           int64_t* block_bytes) {
  return guarded([&] {
    const ivl::Codec& codec = codec_of(type_id, to_encode);
    *block_size = codec.block_size;
    *block_bytes = codec.block_bytes;
  });
}

ivl_status ivl_encode(int type_id, const float* weights, int64_t count, const float* importance,
                      int64_t period, float limit, uint8_t* blocks, int* flags) {
  return guarded([&] {
    const ivl::Codec& codec = codec_of(type_id, true);
    require(count >= 0, "blocks: there are none");
    require(!importance || period > 0, "importance: there is none");
    *flags = ivl::encode_blocks(codec, {weights, importance, period, 0, count, limit, blocks});
  });
}

ivl_status ivl_decode(int type_id, const uint8_t* blocks, int64_t count, float* weights) {
  return guarded([&] { ivl::decode_blocks(codec_of(type_id, false), blocks, count, weights); });
}

bool ivl_matrix_supports(int type_id) { return ivl::PackedMatrix::supports(type_id); }
ivl_status ivl_matrix_row_bytes(int type_id, int64_t columns, int64_t* out) {
  return guarded([&] { *out = ivl::PackedMatrix::row_bytes(type_id, columns); });
}

ivl_status ivl_matrix_new(int type_id, int64_t columns, const ivl_part* parts, size_t num_parts,
                          ivl_matrix** out) {
  return guarded([&] {
    std::vector<ivl::PackedMatrix::Part> given;
    for (size_t i = 0; i < num_parts; ++i) given.push_back({parts[i].blocks, parts[i].rows});
    *out = new ivl_matrix(given, type_id, columns);
  });
}
void ivl_matrix_free(ivl_matrix* matrix) { delete matrix; }
int64_t ivl_matrix_rows(const ivl_matrix* matrix) { return matrix->rows(); }
int64_t ivl_matrix_columns(const ivl_matrix* matrix) { return matrix->columns(); }
size_t ivl_matrix_num_bytes(const ivl_matrix* matrix) { return matrix->num_bytes(); }

ivl_status ivl_matrix_multiply(const ivl_matrix* matrix, const void* x, ivl_dtype x_dtype,
                               int64_t num_rows, const float* bias, void* out,
                               ivl_dtype out_dtype) {
  return guarded([&] {
    require(num_rows >= 0, "a number of rows that is negative");
    static thread_local ivl::QuantizedRows rows;  // each thread that calls has its own
    rows.quantize(x, dtype_of(x_dtype), num_rows, matrix->columns());
    ivl::matmul(*matrix, bias, rows, out, dtype_of(out_dtype));
  });
}

ivl_status ivl_matrix_rows_at(const ivl_matrix* matrix, const int64_t* ids, int64_t count,
                              float* out) {
  return guarded([&] {
    const auto is_there = [&](int64_t id) { return id >= 0 && id < matrix->rows(); };
    if (!std::all_of(ids, ids + count, is_there)) {
      throw std::out_of_range("ids must be in [0, " + std::to_string(matrix->rows()) + ")");
    }
    matrix->rows_at(ids, count, out);
  });
}

ivl_status ivl_float_multiply(const void* weights, ivl_dtype weights_dtype, int64_t rows,
                              int64_t columns, const void* x, ivl_dtype x_dtype, int64_t num_rows,
                              const float* bias, void* out, ivl_dtype out_dtype) {
  return guarded([&] {
    require(rows >= 0 && columns >= 0 && num_rows >= 0, "a size is negative");
    ivl::float_matmul({weights, dtype_of(weights_dtype), rows, columns, x, dtype_of(x_dtype),
                       num_rows, bias, out, dtype_of(out_dtype)});
  });
}

ivl_status ivl_store_block_bytes(ivl_kv_type type, int64_t kv_heads, int64_t head_dim,
                                 int64_t* out) {
  return guarded([&] { *out = block_bytes(kv_type_of(type), kv_heads, head_dim); });
}

ivl_status ivl_store_new(ivl_kv_type type, int64_t kv_heads, int64_t head_dim,
                         uint8_t* const* layers, size_t num_layers, int64_t num_blocks,
                         ivl_store** out) {
  return guarded([&] {
    block_bytes(kv_type_of(type), kv_heads, head_dim);
    for (size_t i = 0; i < num_layers; ++i) {
      require(reinterpret_cast<uintptr_t>(layers[i]) % 4 == 0, "layers: not aligned to 4 bytes");
    }
    *out = new ivl_store{{kv_type_of(type), {layers, layers + num_layers}}, num_blocks, kv_heads,
                         head_dim};
  });
}
void ivl_store_free(ivl_store* store) { delete store; }

ivl_status ivl_decoder_check(const ivl_decoder_shape* shape) {
  return guarded([&] { shape_of(*shape); });
}
ivl_status ivl_decoder_new(const ivl_decoder_shape* shape, const ivl_layer* layers,
                           size_t num_layers, const float* norm, ivl_decoder** out) {
  return guarded([&] {
    const ivl::DecoderShape of = shape_of(*shape);
    std::vector<ivl::DecoderLayer> made;
    for (size_t i = 0; i < num_layers; ++i) made.push_back(layer_of(layers[i], of));
    *out = new ivl_decoder(of, std::move(made), norm);
  });
}
void ivl_decoder_free(ivl_decoder* decoder) { delete decoder; }

ivl_status ivl_decoder_extend(ivl_decoder* decoder, float* x, int64_t num_rows, const float* cos,
                              const float* sin, const ivl_segment* segments, size_t num_segments,
                              const ivl_store* store, bool of_prompt) {
  return guarded([&] {
    check_store(*decoder, *store);
    const auto given = segments_of(segments, num_segments, num_rows, *store);
    decoder->extend(x, num_rows, cos, sin, given, store->view, of_prompt);
  });
}

ivl_status ivl_decoder_attend(ivl_decoder* decoder, int64_t layer, float* q, float* k,
                              const float* v, int64_t num_rows, const float* cos, const float* sin,
                              const ivl_segment* segments, size_t num_segments,
                              const ivl_store* store, bool of_prompt, float* out) {
  return guarded([&] {
    require(layer >= 0 && layer < decoder->num_layers(), "layer: the decoder has no such layer");
    check_store(*decoder, *store);
    const auto given = segments_of(segments, num_segments, num_rows, *store);
    decoder->attend(layer, q, k, v, num_rows, cos, sin, given, store->view, of_prompt, out);
  });
}

bool ivl_has_float16_products(void) { return ivl::has_float16_products(); }
bool ivl_has_bfloat16_products(void) { return ivl::has_bfloat16_products(); }

ivl_status ivl_panels_new(ivl_arithmetic arithmetic, int64_t inputs, const ivl_dense_part* parts,
                          size_t num_parts, const float* bias, ivl_panels** out) {
  return guarded([&] {
    require(inputs >= 1, "inputs: there are none");
    std::vector<ivl::DenseMatrix::Part> given;
    for (size_t i = 0; i < num_parts; ++i) {
      given.push_back({parts[i].numbers, dtype_of(parts[i].dtype), parts[i].rows});
    }
    *out = new ivl_panels(checked<ivl::Dense>(arithmetic, 3, "arithmetic"), given, inputs, bias);
  });
}
void ivl_panels_free(ivl_panels* panels) { delete panels; }
int64_t ivl_panels_outputs(const ivl_panels* panels) { return panels->outputs(); }
size_t ivl_panels_num_bytes(const ivl_panels* panels) { return panels->num_bytes(); }

ivl_status ivl_rows_new(ivl_arithmetic arithmetic, ivl_rows** out) {
  return guarded([&] { *out = new ivl_rows(checked<ivl::Dense>(arithmetic, 3, "arithmetic")); });
}
void ivl_rows_free(ivl_rows* rows) { delete rows; }
int64_t ivl_rows_count(const ivl_rows* rows) { return rows->num_rows(); }
ivl_status ivl_rows_fill(ivl_rows* rows, const float* x, int64_t num_rows, int64_t width,
                         const ivl_norm* norm) {
  return guarded([&] {
    const auto kind = checked<ivl::Norm>(norm->kind, 3, "norm");
    rows->fill(x, num_rows, width, {kind, norm->weight, norm->bias, norm->eps});
  });
}

ivl_status ivl_panels_multiply(const ivl_panels* panels, const ivl_rows* rows, bool gelu,
                               float* out) {
  return guarded([&] {
    panels->multiply(*rows, gelu ? ivl::Epilogue::gelu : ivl::Epilogue::store, nullptr, out);
  });
}
ivl_status ivl_panels_add_scaled(const ivl_panels* panels, const ivl_rows* rows,
                                 const float* channel_scales, float* out) {
  return guarded([&] {
    require(channel_scales, "channel scales are missing");
    panels->multiply(*rows, ivl::Epilogue::add_scaled, channel_scales, out);
  });
}

ivl_status ivl_tile_attention(ivl_arithmetic arithmetic, const float* qkv, int64_t tiles,
                              int64_t positions, int64_t heads, int64_t head_dim, float* out) {
  return guarded([&] {
    const auto type = checked<ivl::Dense>(arithmetic, 3, "arithmetic");
    ivl::tile_attention({type, qkv, out, tiles, positions, heads, head_dim});
  });
}

ivl_status ivl_quantize_rows(const float* x, int64_t num_rows, int64_t columns, int8_t* values,
                             float* scales) {
  return guarded([&] {
    require(columns % ivl::QuantizedRows::kGroup == 0, "x: columns are no multiple of 32");
    ivl::QuantizedRows rows;
    rows.quantize(x, ivl::Dtype::float32, num_rows, columns);
    rows.unpack(values, scales);
  });
}

ivl_status ivl_run_tasks(int64_t num_tasks, int64_t failing, int64_t phases,
                         int64_t* not_run_once) {
  return guarded([&] {
    const int64_t rounds = std::max<int64_t>(1, phases);
    std::vector<std::atomic<int64_t>> counts(static_cast<size_t>(num_tasks));
    const auto count = [&](int64_t task) { counts[static_cast<size_t>(task)] += 1; };
    const auto last = [&](int64_t task) {
      if (task == failing) throw std::invalid_argument("task " + std::to_string(task) + " failed");
      count(task);
    };
    if (phases == 0) {
      ivl::parallel_for(num_tasks, last);
    } else {
      ivl::parallel_phases(phases, [&](ivl::Team& team) {
        for (int64_t i = 0; i + 1 < phases; ++i) team.for_each(num_tasks, count);
        team.for_each(num_tasks, last);
      });
    }
    *not_run_once = 0;
    for (const auto& ran : counts) *not_run_once += ran.load() != rounds;
  });
}

void ivl_fail_allocation(int64_t after) { ivl::fail_allocation(after); }

}  // extern "C"
