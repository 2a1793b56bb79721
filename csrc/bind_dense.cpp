// Dense products, as ivl.kernels.dense sees them. Arrays are contiguous and on the CPU; shapes are
// checked here, for a wrong one would write where it must not.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "dense.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace {

using Matrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

int64_t value_bytes(ivl::Dense type) { return type == ivl::Dense::int8 ? 1 : 2; }

ivl::DenseRows rows_of(ivl::Dense type, Bytes& values, Vector& scales, Integers& sums,
                       int64_t num_rows) {
  require(num_rows >= 1 && values.ndim() == 2, "rows: (rows, bytes)");
  const int64_t stride = static_cast<int64_t>(values.shape(1)) / value_bytes(type);
  require(static_cast<int64_t>(values.shape(0)) == num_rows && stride % ivl::kRowUnits == 0,
          "rows: a whole number of units for every row");
  require(static_cast<int64_t>(scales.size()) == num_rows &&
              static_cast<int64_t>(sums.size()) == num_rows,
          "rows: a scale and a sum for each");
  require(type == ivl::Dense::int8 || ivl::has_float16_products(), "no float16 products here");
  return {values.data(), scales.data(), sums.data(), stride};
}

void prepare(Matrix x, int type_number, int norm_number, std::optional<Vector> weight,
             std::optional<Vector> bias, float eps, Bytes values, Vector scales, Integers sums) {
  const auto type = static_cast<ivl::Dense>(type_number);
  const int64_t num_rows = static_cast<int64_t>(x.shape(0)), width = static_cast<int64_t>(x.shape(1));
  const ivl::DenseRows rows = rows_of(type, values, scales, sums, num_rows);
  require(width >= 1 && width <= rows.stride, "rows: too narrow");
  const ivl::NormArgs norm = {static_cast<ivl::Norm>(norm_number), weight ? weight->data() : nullptr,
                              bias ? bias->data() : nullptr, eps};
  require(norm.kind == ivl::Norm::none || norm.weight, "a norm has a weight");
  require(!weight || static_cast<int64_t>(weight->size()) == width, "norm: width of the weight");
  require(!bias || static_cast<int64_t>(bias->size()) == width, "norm: width of the bias");
  const float* data = x.data();
  nb::gil_scoped_release unlocked;
  constexpr int64_t kRows = 16;
  const ivl::DenseKernels& kernels = ivl::dense_kernels();
  ivl::parallel_for((num_rows + kRows - 1) / kRows, [&](int64_t task) {
    const int64_t first = task * kRows;
    kernels.prepare(type, data, width, first, std::min(kRows, num_rows - first), norm, rows);
  });
}

void multiply(int type_number, Bytes values, Vector scales, Integers sums, Bytes panels,
              std::optional<Vector> weight_scales, std::optional<Vector> bias, Matrix out,
              int epilogue, std::optional<Vector> channel_scales) {
  const auto type = static_cast<ivl::Dense>(type_number);
  const int64_t num_rows = static_cast<int64_t>(out.shape(0));
  ivl::DenseProduct p;
  p.type = type;
  p.rows = rows_of(type, values, scales, sums, num_rows);
  p.num_rows = num_rows;
  p.columns = p.rows.stride;
  p.panels = panels.data();
  p.outputs = static_cast<int64_t>(out.shape(1));
  p.weight_scales = weight_scales ? weight_scales->data() : nullptr;
  p.bias = bias ? bias->data() : nullptr;
  p.out = out.data();
  p.out_stride = p.outputs;
  p.epilogue = static_cast<ivl::Epilogue>(epilogue);
  p.channel_scales = channel_scales ? channel_scales->data() : nullptr;
  for (const auto* v : {&weight_scales, &bias, &channel_scales}) {
    require(!*v || static_cast<int64_t>((*v)->size()) == p.outputs, "a value for each output");
  }
  require(p.epilogue != ivl::Epilogue::add_scaled || p.channel_scales, "channel scales are missing");
  const int64_t num_panels = (p.outputs + ivl::kPanel - 1) / ivl::kPanel;
  const int64_t panel_bytes = ivl::kPanel * p.columns * value_bytes(type);
  require(static_cast<int64_t>(panels.size()) == num_panels * panel_bytes, "panels: wrong size");

  nb::gil_scoped_release unlocked;
  // Panels that stay in the second-level cache while the rows pass by; and rows enough that
  // fetching the panels is a small part, few enough that there is work for every thread.
  constexpr int64_t kCacheBytes = 768 * 1024, kRows = 15 * ivl::kTileRows;
  const int64_t group = std::clamp<int64_t>(kCacheBytes / panel_bytes, 1, num_panels);
  const int64_t groups = (num_panels + group - 1) / group, chunks = (num_rows + kRows - 1) / kRows;
  const ivl::DenseKernels& kernels = ivl::dense_kernels();
  ivl::parallel_for(groups * chunks, [&](int64_t task) {
    const int64_t panel = task / chunks * group, row = task % chunks * kRows;
    kernels.multiply(p, row, std::min(kRows, num_rows - row), panel,
                     std::min(group, num_panels - panel));
  });
}

void attend(nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu> qkv, int64_t heads,
            nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu> out) {
  require(ivl::has_float16_products(), "no float16 products here");
  const int64_t width = static_cast<int64_t>(out.shape(2));
  require(heads >= 1 && width % heads == 0 && width / heads % ivl::kPanel == 0, "head width");
  require(qkv.shape(0) == out.shape(0) && qkv.shape(1) == out.shape(1) &&
              static_cast<int64_t>(qkv.shape(2)) == 3 * width,
          "attention: shapes");
  ivl::TileAttention args = {qkv.data(), out.data(), static_cast<int64_t>(qkv.shape(0)),
                             static_cast<int64_t>(qkv.shape(1)), heads, width / heads};
  nb::gil_scoped_release unlocked;
  ivl::tile_attention(args);
}

// The weight comes as an address: it may be of a type that Python has no arrays of.
void pack(int type_number, uintptr_t weight, int dtype, int64_t rows, int64_t columns,
          float float16_most, nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> panels,
          Vector scales) {
  const auto type = static_cast<ivl::Dense>(type_number);
  const int64_t stride = (columns + ivl::kRowUnits - 1) / ivl::kRowUnits * ivl::kRowUnits;
  const int64_t num_panels = (rows + ivl::kPanel - 1) / ivl::kPanel;
  require(dtype == 0 || dtype == 1 || dtype == 30, "weight: float32, float16 or bfloat16");
  require(static_cast<int64_t>(panels.shape(0)) == num_panels &&
              static_cast<int64_t>(panels.shape(1)) == ivl::kPanel * stride * value_bytes(type),
          "panels: wrong size");
  require(static_cast<int64_t>(scales.size()) == rows, "a scale for each row");
  nb::gil_scoped_release unlocked;
  ivl::dense_pack(type, reinterpret_cast<const void*>(weight), dtype, rows, columns, stride,
                  float16_most, panels.data(), scales.data());
}

// Bytes (num_bytes,) that live as long as the array.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> weight_memory(size_t num_bytes) {
  auto memory = std::make_unique<ivl::WeightMemory>(num_bytes);
  uint8_t* data = memory->data();
  const nb::capsule owner(memory.get(), [](void* p) noexcept {
    delete static_cast<ivl::WeightMemory*>(p);
  });
  memory.release();
  return {data, {num_bytes}, owner};
}

}  // namespace

void bind_dense(nb::module_& m) {
  m.def("has_float16_products", &ivl::has_float16_products);
  m.def("dense_prepare", &prepare, nb::arg("x"), nb::arg("type"), nb::arg("norm"),
        nb::arg("weight").none(), nb::arg("bias").none(), nb::arg("eps"), nb::arg("values"),
        nb::arg("scales"), nb::arg("sums"));
  m.def("dense_multiply", &multiply, nb::arg("type"), nb::arg("values"), nb::arg("scales"),
        nb::arg("sums"), nb::arg("panels"), nb::arg("weight_scales").none(), nb::arg("bias").none(),
        nb::arg("out"), nb::arg("epilogue"), nb::arg("channel_scales").none());
  m.def("weight_memory", &weight_memory);
  m.def("dense_pack", &pack);
  m.def("tile_attention", &attend);
}
