// Products with quantized matrices, as ivl.kernels.cpu_matrix sees them. Arrays come as addresses:
// a call costs less than a vector product of a small layer.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

#include "float_matmul.hpp"
#include "matmul.hpp"

namespace nb = nanobind;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ivl::Dtype dtype_of(int number) {
  if (number != 0 && number != 1 && number != 30) throw nb::value_error("no such dtype");
  return static_cast<ivl::Dtype>(number);
}

// The activations of calls from Python; each thread that calls has its own.
ivl::QuantizedRows& shared_rows() {
  static thread_local ivl::QuantizedRows rows;
  return rows;
}

void multiply(const ivl::PackedMatrix& matrix, uintptr_t x, int x_dtype, int64_t num_rows,
              uintptr_t bias, uintptr_t out, int out_dtype) {
  const ivl::Dtype from = dtype_of(x_dtype), to = dtype_of(out_dtype);
  nb::gil_scoped_release unlocked;
  ivl::QuantizedRows& rows = shared_rows();
  rows.quantize(at<void>(x), from, num_rows, matrix.columns());
  ivl::matmul(matrix, at<float>(bias), rows, at<void>(out), to);
}

void multiply_floats(uintptr_t weights, int weights_dtype, int64_t rows, int64_t columns,
                     uintptr_t x, int x_dtype, int64_t num_rows, uintptr_t bias, uintptr_t out) {
  const ivl::Dtype type = dtype_of(x_dtype);
  const ivl::FloatProduct product = {at<void>(weights), dtype_of(weights_dtype), rows, columns,
                                     at<void>(x), type, num_rows, at<float>(bias), at<void>(out),
                                     type};
  nb::gil_scoped_release unlocked;
  ivl::float_matmul(product);
}

}  // namespace

void bind_matmul(nb::module_& m) {
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<ivl::PackedMatrix>(m, "PackedMatrix")
      .def("__init__",
           [](ivl::PackedMatrix* self, const std::vector<std::pair<uintptr_t, int64_t>>& parts,
              int type_id, int64_t columns) {
             nb::gil_scoped_release unlocked;
             std::vector<ivl::PackedMatrix::Part> found;
             for (const auto& [blocks, rows] : parts) found.push_back({at<uint8_t>(blocks), rows});
             new (self) ivl::PackedMatrix(found, type_id, columns);
           })
      .def_prop_ro_static("part_rows",
                          [](nb::handle) { return ivl::PackedMatrix::kPartRows; })
      .def_prop_ro("num_bytes", &ivl::PackedMatrix::num_bytes)
      .def("matmul", &multiply)
      .def(
          "rows_at",
          [](const ivl::PackedMatrix& self, uintptr_t ids, int64_t num_ids, uintptr_t out) {
            self.rows_at(at<int64_t>(ids), num_ids, at<float>(out));
          },
          Unlocked());
  m.def("float_matmul", &multiply_floats);
  m.def("supports_format", &ivl::PackedMatrix::supports);
  m.def(
      "quantize_rows",
      [](uintptr_t x, int64_t num_rows, int64_t columns, uintptr_t values, uintptr_t scales) {
        ivl::QuantizedRows rows;
        rows.quantize(at<void>(x), ivl::Dtype::float32, num_rows, columns);
        rows.unpack(at<int8_t>(values), at<float>(scales));
      },
      Unlocked());
}
