// The extension module `ivl.kernels._cpu`: include/ivl.h for Python, and the only file that knows
// Python. ivl.kernels.cpu holds the documentation for its users.
//
// What Python hands over is checked before the library sees it, for a kernel that trusted a wrong
// shape would read and write where it must not. Arrays come as anything that knows DLPack or the
// buffer protocol (torch's tensors and the capsules of their `to_dlpack`, which is the quickest;
// numpy's arrays). A wrong kind of thing is a TypeError, a wrong shape or number a ValueError; both
// say what is wrong with which argument. An `nb::ndarray` holds what it shows, so the memory is there
// as long as it is.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "ivl.h"

namespace nb = nanobind;

namespace {

using Array = nb::ndarray<>;  // may be written
using ConstArray = nb::ndarray<nb::ro>;

// --- what may be wrong ---

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

[[noreturn]] void refuse_type(const char* name, const std::string& wanted,
                              const std::string& given) {
  throw nb::type_error((std::string(name) + ": " + wanted + " is wanted, not " + given).c_str());
}

void check(ivl_status status) {
  switch (status) {
    case IVL_OK: return;
    case IVL_INVALID: throw nb::value_error(ivl_error());
    case IVL_OUT_OF_RANGE: throw nb::index_error(ivl_error());
    case IVL_OUT_OF_MEMORY: throw std::bad_alloc();
    case IVL_FAILED: break;
  }
  throw std::runtime_error(ivl_error());
}

// Runs a function of the library while other threads may run Python.
template <class Call>
void run(Call&& call) {
  ivl_status status;
  {
    nb::gil_scoped_release unlocked;
    status = call();
  }
  check(status);
}

template <size_t kCount>
int index_in(const char* const (&names)[kCount], const std::string& given, const char* what) {
  std::string all;
  for (size_t i = 0; i < kCount; ++i) {
    if (given == names[i]) return static_cast<int>(i);
    all += (i ? ", " : "") + std::string(names[i]);
  }
  refuse(std::string(what) + ": '" + given + "' is none of " + all);
}

// --- arrays ---

template <class Any>
int64_t size_at(const Any& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

template <class Any>
std::string shape_text(const Any& array) {
  std::string text = "(";
  for (size_t i = 0; i < array.ndim(); ++i) {
    text += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + ")";
}

std::string dtype_text(nb::dlpack::dtype dtype) {
  constexpr const char* kNames[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  const std::string name = dtype.code < 7 ? kNames[dtype.code] : "unknown";
  return name + std::to_string(dtype.bits);
}

// In this processor's memory, and without gaps, the last axis first.
template <class Any>
void check_place(const Any& array, const char* name) {
  if (array.device_type() != nb::device::cpu::value) {
    refuse_type(name, "an array on the CPU", "one on another device");
  }
  int64_t apart = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    const int64_t size = size_at(array, i);
    if (array.size() != 0 && size != 1 && array.stride(i) != apart) {
      refuse(std::string(name) + ": an array without gaps is wanted (contiguous)");
    }
    apart *= size;
  }
}

constexpr int64_t kAny = -1;  // of a shape: as long as it is

template <class Any>
void check_shape(const Any& array, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = array.ndim() == shape.size();
  size_t axis = 0;
  for (int64_t size : shape) {
    fits = fits && (size == kAny || size_at(array, axis) == size);
    ++axis;
  }
  if (fits) return;
  std::string wanted = "(";
  axis = 0;
  for (int64_t size : shape) {
    wanted += (axis++ ? ", " : "") + (size == kAny ? std::string("any") : std::to_string(size));
  }
  refuse(std::string(name) + ": the shape " + wanted + ") is wanted, not " + shape_text(array));
}

// The numbers of an array of the type T and of this shape; for a `ConstArray` they are const.
template <class T, class Any>
auto numbers(const Any& array, const char* name, std::initializer_list<int64_t> shape) {
  if (array.dtype() != nb::dtype<T>()) {
    refuse_type(name, dtype_text(nb::dtype<T>()), dtype_text(array.dtype()));
  }
  check_place(array, name);
  check_shape(array, name, shape);
  if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0 && array.size() != 0) {
    refuse(std::string(name) + ": the memory is not aligned to its numbers");
  }
  using Number = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(array.data())>>,
                                    const T, T>;
  return static_cast<Number*>(array.data());
}

// The same for what may be None.
template <class T, class Any>
auto numbers_or_null(const std::optional<Any>& array, const char* name,
                     std::initializer_list<int64_t> shape) {
  return array ? numbers<T>(*array, name, shape) : nullptr;
}

// float32, float16 or bfloat16.
template <class Any>
ivl_dtype float_dtype(const Any& array, const char* name) {
  const nb::dlpack::dtype dtype = array.dtype();
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return dtype.code == static_cast<uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(nb::dlpack::dtype_code::Float, 32)) return IVL_FLOAT32;
  if (is(nb::dlpack::dtype_code::Float, 16)) return IVL_FLOAT16;
  if (is(nb::dlpack::dtype_code::Bfloat, 16)) return IVL_BFLOAT16;
  refuse_type(name, "float32, float16 or bfloat16", dtype_text(dtype));
}

// Rows of an array (..., columns): of x (..., columns) -> out (..., rows) there are as many.
template <class Any>
int64_t rows_of(const Any& array, const char* name, int64_t columns) {
  check_place(array, name);
  const size_t last = array.ndim() == 0 ? 0 : array.ndim() - 1;
  if (array.ndim() == 0 || size_at(array, last) != columns) {
    refuse(std::string(name) + ": the shape (..., " + std::to_string(columns) +
           ") is wanted, not " + shape_text(array));
  }
  int64_t rows = 1;
  for (size_t i = 0; i < last; ++i) rows *= size_at(array, i);
  return rows;
}

// --- handles ---

template <class T, void (*kFree)(T*)>
class Handle {
 public:
  Handle() = default;
  ~Handle() { kFree(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  T* get() const { return handle_; }
  T** place() { return &handle_; }  // for the function that makes it

 private:
  T* handle_ = nullptr;
};

// --- instruction sets ---

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  while (const char* name = ivl_usable_isa(names.size())) names.emplace_back(name);
  return names;
}

// --- products ---

struct PackedMatrix {
  Handle<ivl_matrix, ivl_matrix_free> handle;

  PackedMatrix(const std::vector<ConstArray>& parts, int type_id, int64_t columns) {
    int64_t row_bytes;
    check(ivl_matrix_row_bytes(type_id, columns, &row_bytes));
    std::vector<ivl_part> given;
    for (const ConstArray& part : parts) {
      const uint8_t* blocks = numbers<uint8_t>(part, "blocks", {kAny, row_bytes});
      given.push_back({blocks, size_at(part, 0)});
    }
    run([&] {
      return ivl_matrix_new(type_id, columns, given.data(), given.size(), handle.place());
    });
  }

  int64_t rows() const { return ivl_matrix_rows(handle.get()); }
  int64_t columns() const { return ivl_matrix_columns(handle.get()); }
  size_t num_bytes() const { return ivl_matrix_num_bytes(handle.get()); }

  // x (..., columns) -> out (..., rows).
  void multiply(const ConstArray& x, const std::optional<ConstArray>& bias,
                const Array& out) const {
    const ivl_dtype from = float_dtype(x, "x"), to = float_dtype(out, "out");
    const int64_t num_rows = rows_of(x, "x", columns());
    if (rows_of(out, "out", rows()) != num_rows) refuse("out: not as many rows as x");
    const float* added = numbers_or_null<float>(bias, "bias", {rows()});
    const void* values = x.data();
    void* results = out.data();
    run([&] {
      return ivl_matrix_multiply(handle.get(), values, from, num_rows, added, results, to);
    });
  }

  void rows_at(const ConstArray& ids, const Array& out) const {
    const int64_t* chosen = numbers<int64_t>(ids, "ids", {kAny});
    const int64_t count = size_at(ids, 0);
    float* weights = numbers<float>(out, "out", {count, columns()});
    run([&] { return ivl_matrix_rows_at(handle.get(), chosen, count, weights); });
  }
};

// weights (rows, columns), x (..., columns) -> out (..., rows) in the type of x.
void float_multiply(const ConstArray& weights, const ConstArray& x,
                    const std::optional<ConstArray>& bias, const Array& out) {
  const ivl_dtype of_weights = float_dtype(weights, "weights"), type = float_dtype(x, "x");
  check_place(weights, "weights");
  check_shape(weights, "weights", {kAny, kAny});
  const int64_t rows = size_at(weights, 0), columns = size_at(weights, 1);
  const int64_t num_rows = rows_of(x, "x", columns);
  if (float_dtype(out, "out") != type) refuse("out: not of the type of x");
  if (rows_of(out, "out", rows) != num_rows) refuse("out: not as many rows as x");
  const float* added = numbers_or_null<float>(bias, "bias", {rows});
  const void *from = weights.data(), *values = x.data();
  void* results = out.data();
  run([&] {
    return ivl_float_multiply(from, of_weights, rows, columns, values, type, num_rows, added,
                              results, type);
  });
}

void quantize_rows(const ConstArray& x, const Array& values, const Array& scales) {
  const float* from = numbers<float>(x, "x", {kAny, kAny});
  const int64_t num_rows = size_at(x, 0), columns = size_at(x, 1);
  int8_t* to = numbers<int8_t>(values, "values", {num_rows, columns});
  float* scale = numbers<float>(scales, "scales", {num_rows, columns / 32});
  run([&] { return ivl_quantize_rows(from, num_rows, columns, to, scale); });
}

// --- blocks ---

int quantize(int type_id, const ConstArray& weights, const std::optional<ConstArray>& importance,
             float limit, const Array& out) {
  int64_t block_size, block_bytes;
  check(ivl_block_shape(type_id, true, &block_size, &block_bytes));
  const float* from = numbers<float>(weights, "weights", {kAny, block_size});
  const int64_t count = size_at(weights, 0);
  const float* share = numbers_or_null<float>(importance, "importance", {kAny, block_size});
  const int64_t period = importance ? size_at(*importance, 0) : 1;
  uint8_t* blocks = numbers<uint8_t>(out, "out", {count, block_bytes});
  int flags = 0;
  run([&] { return ivl_encode(type_id, from, count, share, period, limit, blocks, &flags); });
  return flags;
}

void dequantize(int type_id, const ConstArray& blocks, const Array& out) {
  int64_t block_size, block_bytes;
  check(ivl_block_shape(type_id, false, &block_size, &block_bytes));
  const uint8_t* from = numbers<uint8_t>(blocks, "blocks", {kAny, block_bytes});
  const int64_t count = size_at(blocks, 0);
  float* to = numbers<float>(out, "out", {count, block_size});
  run([&] { return ivl_decode(type_id, from, count, to); });
}

// --- the layers of a decoder ---

constexpr const char* kKVTypes[] = {"32bit", "16bit", "8bit"};

// Memory for keys and values of some layers, and how it is divided.
struct KVBlocks {
  Handle<ivl_store, ivl_store_free> handle;
  std::vector<Array> layers;

  KVBlocks(const std::vector<Array>& given, const std::string& type_name, int64_t kv_heads,
           int64_t head_dim)
      : layers(given) {
    const auto type = static_cast<ivl_kv_type>(index_in(kKVTypes, type_name, "type"));
    int64_t block_bytes, num_blocks = 0;
    check(ivl_store_block_bytes(type, kv_heads, head_dim, &block_bytes));
    std::vector<uint8_t*> places;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (i == 0 && layers[i].ndim() == 2) num_blocks = size_at(layers[i], 0);
      places.push_back(numbers<uint8_t>(layers[i], "layers", {num_blocks, block_bytes}));
    }
    check(ivl_store_new(type, kv_heads, head_dim, places.data(), places.size(), num_blocks,
                        handle.place()));
  }
};

// (number of tokens, length of what is known, blocks)
using SegmentArgs = std::tuple<int64_t, int64_t, std::vector<int32_t>>;

std::vector<ivl_segment> segments_of(const std::vector<SegmentArgs>& args) {
  std::vector<ivl_segment> segments;
  segments.reserve(args.size());
  for (const auto& [num_tokens, length, blocks] : args) {
    segments.push_back({num_tokens, length, blocks.data(), blocks.size()});
  }
  return segments;
}

// A decoder, and all that its layers point to.
class Decoder {
 public:
  Decoder(int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t intermediate,
          float norm_eps, const nb::list& layers, nb::handle norm)
      : shape_{hidden, heads, kv_heads, head_dim, intermediate, norm_eps} {
    check(ivl_decoder_check(&shape_));
    std::vector<ivl_layer> described;
    for (nb::handle one : layers) described.push_back(layer(one));
    const float* last = norm.is_none() ? nullptr : vector(norm, "norm", hidden);
    check(ivl_decoder_new(&shape_, described.data(), described.size(), last, handle_.place()));
  }

  void extend(const Array& x, const ConstArray& cos, const ConstArray& sin,
              const std::vector<SegmentArgs>& args, const KVBlocks& cache, bool of_prompt) const {
    float* hidden = numbers<float>(x, "x", {kAny, shape_.hidden});
    const int64_t num_rows = size_at(x, 0);
    const float* c = numbers<float>(cos, "cos", {num_rows, shape_.head_dim});
    const float* s = numbers<float>(sin, "sin", {num_rows, shape_.head_dim});
    const auto segments = segments_of(args);
    run([&] {
      return ivl_decoder_extend(handle_.get(), hidden, num_rows, c, s, segments.data(),
                                segments.size(), cache.handle.get(), of_prompt);
    });
  }

  void attend(int64_t layer, const Array& q, const Array& k, const ConstArray& v,
              const ConstArray& cos, const ConstArray& sin, const std::vector<SegmentArgs>& args,
              const KVBlocks& cache, bool of_prompt, const Array& out) const {
    float* queries = numbers<float>(q, "q", {kAny, q_width()});
    const int64_t num_rows = size_at(q, 0);
    float* keys = numbers<float>(k, "k", {num_rows, kv_width()});
    const float* values = numbers<float>(v, "v", {num_rows, kv_width()});
    const float* c = numbers<float>(cos, "cos", {num_rows, shape_.head_dim});
    const float* s = numbers<float>(sin, "sin", {num_rows, shape_.head_dim});
    float* to = numbers<float>(out, "out", {num_rows, q_width()});
    const auto segments = segments_of(args);
    run([&] {
      return ivl_decoder_attend(handle_.get(), layer, queries, keys, values, num_rows, c, s,
                                segments.data(), segments.size(), cache.handle.get(), of_prompt,
                                to);
    });
  }

 private:
  int64_t q_width() const { return shape_.heads * shape_.head_dim; }
  int64_t kv_width() const { return shape_.kv_heads * shape_.head_dim; }

  static nb::object item(nb::handle args, size_t index, size_t count, const char* name) {
    if (!nb::isinstance<nb::tuple>(args) || nb::len(args) != count) {
      refuse_type(name, "a tuple of " + std::to_string(count), nb::repr(args.type()).c_str());
    }
    return nb::borrow<nb::tuple>(args)[index];
  }

  const ConstArray& array(nb::handle object, const char* name) {
    ConstArray found;
    if (!nb::ndarray_check(object) || !nb::try_cast(object, found)) {
      refuse_type(name, "an array", nb::repr(object.type()).c_str());
    }
    return arrays_.emplace_back(std::move(found));
  }

  const float* vector(nb::handle object, const char* name, int64_t size) {
    return numbers<float>(array(object, name), name, {size});
  }

  // (PackedMatrix or array of plain numbers, bias or None)
  ivl_linear linear(nb::handle args, const char* name, int64_t rows, int64_t columns) {
    const nb::object weight = item(args, 0, 2, name), bias = item(args, 1, 2, name);
    ivl_linear linear = {nullptr, nullptr, IVL_FLOAT32, nullptr};
    if (!bias.is_none()) linear.bias = vector(bias, name, rows);
    if (nb::isinstance<PackedMatrix>(weight)) {
      linear.matrix = nb::cast<const PackedMatrix&>(weight).handle.get();
      matrices_.push_back(weight);
      return linear;
    }
    const ConstArray& plain = array(weight, name);
    linear.dtype = float_dtype(plain, name);
    check_place(plain, name);
    check_shape(plain, name, {rows, columns});
    linear.numbers = plain.data();
    return linear;
  }

  // (norm, q, k, v, o, norm, gate, up, down)
  ivl_layer layer(nb::handle args) {
    const auto at = [&](size_t i) { return item(args, i, 9, "layers"); };
    const int64_t hidden = shape_.hidden, inner = shape_.intermediate;
    return {vector(at(0), "attn_norm", hidden),      linear(at(1), "q", q_width(), hidden),
            linear(at(2), "k", kv_width(), hidden),  linear(at(3), "v", kv_width(), hidden),
            linear(at(4), "o", hidden, q_width()),   vector(at(5), "ffn_norm", hidden),
            linear(at(6), "gate", inner, hidden),    linear(at(7), "up", inner, hidden),
            linear(at(8), "down", hidden, inner)};
  }

  ivl_decoder_shape shape_;
  std::vector<nb::object> matrices_;
  std::vector<ConstArray> arrays_;
  Handle<ivl_decoder, ivl_decoder_free> handle_;
};

// --- the vision tower ---

constexpr const char* kArithmetics[] = {"int8", "float16", "bfloat16"};
constexpr const char* kNorms[] = {"none", "layer", "rms"};

ivl_arithmetic arithmetic_of(const std::string& name) {
  return static_cast<ivl_arithmetic>(index_in(kArithmetics, name, "arithmetic"));
}

struct DenseRows {
  Handle<ivl_rows, ivl_rows_free> handle;

  explicit DenseRows(const std::string& arithmetic) {
    check(ivl_rows_new(arithmetic_of(arithmetic), handle.place()));
  }

  void fill(const ConstArray& x, const std::string& norm, const std::optional<ConstArray>& weight,
            const std::optional<ConstArray>& bias, float eps) {
    const float* from = numbers<float>(x, "x", {kAny, kAny});
    const int64_t num_rows = size_at(x, 0), width = size_at(x, 1);
    const ivl_norm args = {static_cast<ivl_norm_kind>(index_in(kNorms, norm, "norm")),
                           numbers_or_null<float>(weight, "norm: weight", {width}),
                           numbers_or_null<float>(bias, "norm: bias", {width}), eps};
    run([&] { return ivl_rows_fill(handle.get(), from, num_rows, width, &args); });
  }
};

struct DensePanels {
  Handle<ivl_panels, ivl_panels_free> handle;

  DensePanels(const std::string& arithmetic, const std::vector<ConstArray>& parts,
              const std::optional<ConstArray>& bias) {
    if (parts.empty() || parts[0].ndim() != 2) refuse("weight: the shape (any, any) is wanted");
    const int64_t inputs = size_at(parts[0], 1);
    int64_t outputs = 0;
    std::vector<ivl_dense_part> given;
    for (const ConstArray& part : parts) {
      const ivl_dtype dtype = float_dtype(part, "weight");
      check_place(part, "weight");
      check_shape(part, "weight", {kAny, inputs});
      given.push_back({part.data(), dtype, size_at(part, 0)});
      outputs += size_at(part, 0);
    }
    const float* added = numbers_or_null<float>(bias, "bias", {outputs});
    run([&] {
      return ivl_panels_new(arithmetic_of(arithmetic), inputs, given.data(), given.size(), added,
                            handle.place());
    });
  }

  size_t num_bytes() const { return ivl_panels_num_bytes(handle.get()); }

  void multiply(const DenseRows& rows, const Array& out, bool gelu) const {
    float* to = results(rows, out);
    run([&] { return ivl_panels_multiply(handle.get(), rows.handle.get(), gelu, to); });
  }

  void add_scaled(const DenseRows& rows, const ConstArray& channel_scales, const Array& out) const {
    float* to = results(rows, out);
    const float* scales =
        numbers<float>(channel_scales, "channel_scales", {ivl_panels_outputs(handle.get())});
    run([&] { return ivl_panels_add_scaled(handle.get(), rows.handle.get(), scales, to); });
  }

 private:
  float* results(const DenseRows& rows, const Array& out) const {
    return numbers<float>(
        out, "out", {ivl_rows_count(rows.handle.get()), ivl_panels_outputs(handle.get())});
  }
};

void tile_attention(const std::string& arithmetic, const ConstArray& qkv, int64_t heads,
                    const Array& out) {
  float* to = numbers<float>(out, "out", {kAny, kAny, kAny});
  const int64_t tiles = size_at(out, 0), positions = size_at(out, 1), width = size_at(out, 2);
  if (heads < 1 || width % heads != 0) refuse("heads: not in equal parts of the width");
  const float* from = numbers<float>(qkv, "qkv", {tiles, positions, 3 * width});
  const ivl_arithmetic type = arithmetic_of(arithmetic);
  run([&] { return ivl_tile_attention(type, from, tiles, positions, heads, width / heads, to); });
}

// --- what is measured, and what tests ask ---

double read_bandwidth(int64_t num_bytes) {
  double found = 0;
  run([&] { return ivl_read_bandwidth(num_bytes, &found); });
  return found;
}

double byte_products(int64_t rounds) {
  double found = 0;
  run([&] { return ivl_byte_products(rounds, &found); });
  return found;
}

int64_t tasks_not_run_once(int64_t num_tasks, int64_t failing, int64_t phases) {
  int64_t wrong = 0;
  run([&] { return ivl_run_tasks(num_tasks, failing, phases, &wrong); });
  return wrong;
}

}  // namespace

NB_MODULE(_cpu, m) {
  // Changes whenever a function is called in another way: an extension that was built from older
  // sources is recognised by it (ivl.kernels.cpu).
  m.attr("interface") = 7;
  m.def("isa", &ivl_isa);
  m.def("use_isa", &ivl_use_isa);
  m.def("usable_isas", &usable_isas);

  m.def("num_threads", &ivl_num_threads);
  m.def("set_num_threads", &ivl_set_num_threads);
  m.def("thread_pool", &ivl_thread_pool);
  m.def("use_openmp", &ivl_use_openmp);
  m.def("tasks_not_run_once", &tasks_not_run_once, nb::arg("num_tasks"), nb::arg("failing") = -1,
        nb::arg("phases") = 0);
  m.def("fail_allocation", &ivl_fail_allocation, nb::arg("after"));

  m.def("read_bandwidth", &read_bandwidth);
  m.def("byte_products", &byte_products);

  nb::class_<PackedMatrix>(m, "PackedMatrix")
      .def(nb::init<const std::vector<ConstArray>&, int, int64_t>(), nb::arg("parts"),
           nb::arg("type_id"), nb::arg("columns"))
      .def_prop_ro_static("part_rows", [](nb::handle) { return int{IVL_PART_ROWS}; })
      .def_prop_ro("num_bytes", &PackedMatrix::num_bytes)
      .def("matmul", &PackedMatrix::multiply, nb::arg("x"), nb::arg("bias").none(), nb::arg("out"))
      .def("rows_at", &PackedMatrix::rows_at, nb::arg("ids"), nb::arg("out"));
  m.def("float_matmul", &float_multiply, nb::arg("weights"), nb::arg("x"), nb::arg("bias").none(),
        nb::arg("out"));
  m.def("supports_format", &ivl_matrix_supports);
  m.def("quantize_rows", &quantize_rows, nb::arg("x"), nb::arg("values"), nb::arg("scales"));

  m.def("quantize", &quantize, nb::arg("type_id"), nb::arg("weights"),
        nb::arg("importance").none(), nb::arg("limit"), nb::arg("out"));
  m.def("dequantize", &dequantize, nb::arg("type_id"), nb::arg("blocks"), nb::arg("out"));

  nb::class_<KVBlocks>(m, "KVBlocks")
      .def(nb::init<const std::vector<Array>&, const std::string&, int64_t, int64_t>(),
           nb::arg("layers"), nb::arg("type"), nb::arg("kv_heads"), nb::arg("head_dim"));
  nb::class_<Decoder>(m, "Decoder")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, int64_t, float, const nb::list&,
                    nb::handle>(),
           nb::arg("hidden"), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"),
           nb::arg("intermediate"), nb::arg("norm_eps"), nb::arg("layers"), nb::arg("norm").none())
      .def("extend", &Decoder::extend, nb::arg("x"), nb::arg("cos"), nb::arg("sin"),
           nb::arg("segments"), nb::arg("cache"), nb::arg("of_prompt"))
      .def("attend", &Decoder::attend, nb::arg("layer"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("cos"), nb::arg("sin"), nb::arg("segments"), nb::arg("cache"),
           nb::arg("of_prompt"), nb::arg("out"));

  m.def("has_float16_products", &ivl_has_float16_products);
  m.def("has_bfloat16_products", &ivl_has_bfloat16_products);
  nb::class_<DenseRows>(m, "DenseRows")
      .def(nb::init<const std::string&>(), nb::arg("arithmetic"))
      .def("fill", &DenseRows::fill, nb::arg("x"), nb::arg("norm"), nb::arg("weight").none(),
           nb::arg("bias").none(), nb::arg("eps"));
  nb::class_<DensePanels>(m, "DensePanels")
      .def(nb::init<const std::string&, const std::vector<ConstArray>&,
                    const std::optional<ConstArray>&>(),
           nb::arg("arithmetic"), nb::arg("parts"), nb::arg("bias").none())
      .def_prop_ro_static("part_outputs", [](nb::handle) { return int{IVL_PANEL_OUTPUTS}; })
      .def_prop_ro("num_bytes", &DensePanels::num_bytes)
      .def("multiply", &DensePanels::multiply, nb::arg("rows"), nb::arg("out"), nb::arg("gelu"))
      .def("add_scaled", &DensePanels::add_scaled, nb::arg("rows"), nb::arg("channel_scales"),
           nb::arg("out"));
  m.def("tile_attention", &tile_attention, nb::arg("arithmetic"), nb::arg("qkv"),
        nb::arg("heads"), nb::arg("out"));
}
