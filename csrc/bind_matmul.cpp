// Products with quantized matrices and with plain numbers, as ivl.kernels.cpu_matrix and
// ivl.kernels.float_linear see them. Activations and results may be unaligned.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "float_matmul.hpp"
#include "matmul.hpp"

namespace nb = nanobind;

namespace {

using ivl::Array;
using ivl::ConstArray;

// The activations of calls from Python; each thread that calls has its own.
ivl::QuantizedRows& shared_rows() {
  static thread_local ivl::QuantizedRows rows;
  return rows;
}

void make(ivl::PackedMatrix* self, const std::vector<ConstArray>& parts, int type_id,
          int64_t columns) {
  const int64_t row_bytes = ivl::PackedMatrix::row_bytes(type_id, columns);
  std::vector<ivl::PackedMatrix::Part> found;
  for (const ConstArray& part : parts) {
    const uint8_t* blocks = ivl::numbers<uint8_t>(part, "blocks", {ivl::kAny, row_bytes});
    found.push_back({blocks, ivl::size_at(part, 0)});
  }
  nb::gil_scoped_release unlocked;
  new (self) ivl::PackedMatrix(found, type_id, columns);
}

// x (..., columns) -> out (..., rows).
void multiply(const ivl::PackedMatrix& matrix, const ConstArray& x,
              const std::optional<ConstArray>& bias, const Array& out) {
  const ivl::Dtype from = ivl::float_dtype(x, "x"), to = ivl::float_dtype(out, "out");
  const int64_t num_rows = ivl::rows_of(x, "x", matrix.columns());
  ivl::require(ivl::rows_of(out, "out", matrix.rows()) == num_rows, "out: not as many rows as x");
  const float* added = ivl::numbers_or_null<float>(bias, "bias", {matrix.rows()});
  const void* values = x.data();
  void* results = out.data();
  nb::gil_scoped_release unlocked;
  ivl::QuantizedRows& rows = shared_rows();
  rows.quantize(values, from, num_rows, matrix.columns());
  ivl::matmul(matrix, added, rows, results, to);
}

void rows_at(const ivl::PackedMatrix& matrix, const ConstArray& ids, const Array& out) {
  const int64_t* chosen = ivl::numbers<int64_t>(ids, "ids", {ivl::kAny});
  const int64_t count = ivl::size_at(ids, 0);
  float* weights = ivl::numbers<float>(out, "out", {count, matrix.columns()});
  for (int64_t i = 0; i < count; ++i) {
    if (chosen[i] < 0 || chosen[i] >= matrix.rows()) {
      throw std::out_of_range("ids must be in [0, " + std::to_string(matrix.rows()) + ")");
    }
  }
  nb::gil_scoped_release unlocked;
  matrix.rows_at(chosen, count, weights);
}

// weights (rows, columns), x (..., columns) -> out (..., rows) in the type of x.
void multiply_floats(const ConstArray& weights, const ConstArray& x,
                     const std::optional<ConstArray>& bias, const Array& out) {
  const ivl::Dtype of_weights = ivl::float_dtype(weights, "weights");
  const ivl::Dtype type = ivl::float_dtype(x, "x");
  ivl::check_place(weights, "weights");
  ivl::check_shape(weights, "weights", {ivl::kAny, ivl::kAny});
  const int64_t rows = ivl::size_at(weights, 0), columns = ivl::size_at(weights, 1);
  const int64_t num_rows = ivl::rows_of(x, "x", columns);
  ivl::require(ivl::float_dtype(out, "out") == type, "out: not of the type of x");
  ivl::require(ivl::rows_of(out, "out", rows) == num_rows, "out: not as many rows as x");
  const ivl::FloatProduct product = {
      weights.data(), of_weights, rows,       columns, x.data(), type, num_rows,
      ivl::numbers_or_null<float>(bias, "bias", {rows}), out.data(), type};
  nb::gil_scoped_release unlocked;
  ivl::float_matmul(product);
}

// For tests: x float32 (rows, columns) as the products round it.
void quantize_rows(const ConstArray& x, const Array& values, const Array& scales) {
  const float* from = ivl::numbers<float>(x, "x", {ivl::kAny, ivl::kAny});
  const int64_t num_rows = ivl::size_at(x, 0), columns = ivl::size_at(x, 1);
  ivl::require(columns % ivl::QuantizedRows::kGroup == 0, "x: columns are no multiple of 32");
  int8_t* to = ivl::numbers<int8_t>(values, "values", {num_rows, columns});
  float* scale =
      ivl::numbers<float>(scales, "scales", {num_rows, columns / ivl::QuantizedRows::kGroup});
  nb::gil_scoped_release unlocked;
  ivl::QuantizedRows rows;
  rows.quantize(from, ivl::Dtype::float32, num_rows, columns);
  rows.unpack(to, scale);
}

}  // namespace

void bind_matmul(nb::module_& m) {
  nb::class_<ivl::PackedMatrix>(m, "PackedMatrix")
      .def("__init__", &make, nb::arg("parts"), nb::arg("type_id"), nb::arg("columns"))
      .def_prop_ro_static("part_rows",
                          [](nb::handle) { return ivl::PackedMatrix::kPartRows; })
      .def_prop_ro("num_bytes", &ivl::PackedMatrix::num_bytes)
      .def("matmul", &multiply, nb::arg("x"), nb::arg("bias").none(), nb::arg("out"))
      .def("rows_at", &rows_at, nb::arg("ids"), nb::arg("out"));
  m.def("float_matmul", &multiply_floats, nb::arg("weights"), nb::arg("x"), nb::arg("bias").none(),
        nb::arg("out"));
  m.def("supports_format", &ivl::PackedMatrix::supports);
  m.def("quantize_rows", &quantize_rows, nb::arg("x"), nb::arg("values"), nb::arg("scales"));
}
