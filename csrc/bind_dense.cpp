// Dense products, as ivl.kernels.dense sees them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "arguments.hpp"
#include "dense.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace {

using ivl::Array;
using ivl::ConstArray;
using ivl::require;

constexpr int kTypes = 2, kNorms = 3, kEpilogues = 3;

int64_t value_bytes(ivl::Dense type) { return type == ivl::Dense::int8 ? 1 : 2; }

ivl::Dense type_at(int number) {
  const auto type = ivl::enum_at<ivl::Dense>(number, kTypes, "type");
  require(type == ivl::Dense::int8 || ivl::has_float16_products(), "no float16 products here");
  return type;
}

// They are written by `prepare` alone; who multiplies has them const in Python's eyes.
ivl::DenseRows rows_of(ivl::Dense type, const Array& values, const Array& scales,
                       const Array& sums, int64_t num_rows) {
  require(num_rows >= 1, "rows: there are none");
  uint8_t* bytes = ivl::numbers<uint8_t>(values, "rows: values", {num_rows, ivl::kAny});
  const int64_t unit = ivl::kRowUnits * value_bytes(type), row_bytes = ivl::size_at(values, 1);
  require(row_bytes >= unit && row_bytes % unit == 0,
          "rows: a whole number of units for every row");
  return {bytes, ivl::numbers<float>(scales, "rows: scales", {num_rows}),
          ivl::numbers<int32_t>(sums, "rows: sums", {num_rows}), row_bytes / value_bytes(type)};
}

void prepare(const ConstArray& x, int type_number, int norm_number,
             const std::optional<ConstArray>& weight, const std::optional<ConstArray>& bias,
             float eps, const Array& values, const Array& scales, const Array& sums) {
  const ivl::Dense type = type_at(type_number);
  const float* data = ivl::numbers<float>(x, "x", {ivl::kAny, ivl::kAny});
  const int64_t num_rows = ivl::size_at(x, 0), width = ivl::size_at(x, 1);
  const ivl::DenseRows rows = rows_of(type, values, scales, sums, num_rows);
  require(width >= 1 && width <= rows.stride, "rows: too narrow");
  const ivl::NormArgs norm = {ivl::enum_at<ivl::Norm>(norm_number, kNorms, "norm"),
                              ivl::numbers_or_null<float>(weight, "norm: weight", {width}),
                              ivl::numbers_or_null<float>(bias, "norm: bias", {width}), eps};
  require(norm.kind == ivl::Norm::none || norm.weight, "a norm has a weight");
  const ivl::DenseKernels& kernels = ivl::dense_kernels();
  nb::gil_scoped_release unlocked;
  constexpr int64_t kRows = 16;
  ivl::parallel_for((num_rows + kRows - 1) / kRows, [&](int64_t task) {
    const int64_t first = task * kRows;
    kernels.prepare(type, data, width, first, std::min(kRows, num_rows - first), norm, rows);
  });
}

void multiply(int type_number, const Array& values, const Array& scales, const Array& sums,
              const ConstArray& panels, const std::optional<ConstArray>& weight_scales,
              const std::optional<ConstArray>& bias, const Array& out, int epilogue,
              const std::optional<ConstArray>& channel_scales) {
  ivl::DenseProduct p;
  p.type = type_at(type_number);
  p.out = ivl::numbers<float>(out, "out", {ivl::kAny, ivl::kAny});
  const int64_t num_rows = p.num_rows = ivl::size_at(out, 0);
  p.outputs = p.out_stride = ivl::size_at(out, 1);
  p.rows = rows_of(p.type, values, scales, sums, num_rows);
  p.columns = p.rows.stride;
  p.weight_scales = ivl::numbers_or_null<float>(weight_scales, "a scale for each output", {p.outputs});
  p.bias = ivl::numbers_or_null<float>(bias, "a bias for each output", {p.outputs});
  p.channel_scales =
      ivl::numbers_or_null<float>(channel_scales, "a channel scale for each output", {p.outputs});
  p.epilogue = ivl::enum_at<ivl::Epilogue>(epilogue, kEpilogues, "epilogue");
  require(p.epilogue != ivl::Epilogue::add_scaled || p.channel_scales, "channel scales are missing");
  const int64_t num_panels = (p.outputs + ivl::kPanel - 1) / ivl::kPanel;
  const int64_t panel_bytes = ivl::kPanel * p.columns * value_bytes(p.type);
  p.panels = ivl::numbers<uint8_t>(panels, "panels, one for 32 outputs", {num_panels, panel_bytes});
  const ivl::DenseKernels& kernels = ivl::dense_kernels();

  nb::gil_scoped_release unlocked;
  // Panels that stay in the second-level cache while the rows pass by; and rows enough that
  // fetching the panels is a small part, few enough that there is work for every thread.
  constexpr int64_t kCacheBytes = 768 * 1024, kRows = 15 * ivl::kTileRows;
  const int64_t group =
      std::clamp<int64_t>(kCacheBytes / panel_bytes, 1, std::max<int64_t>(1, num_panels));
  const int64_t groups = (num_panels + group - 1) / group, chunks = (num_rows + kRows - 1) / kRows;
  ivl::parallel_for(groups * chunks, [&](int64_t task) {
    const int64_t panel = task / chunks * group, row = task % chunks * kRows;
    kernels.multiply(p, row, std::min(kRows, num_rows - row), panel,
                     std::min(group, num_panels - panel));
  });
}

void attend(const ConstArray& qkv, int64_t heads, const Array& out) {
  require(ivl::has_float16_products(), "no float16 products here");
  float* to = ivl::numbers<float>(out, "out", {ivl::kAny, ivl::kAny, ivl::kAny});
  const int64_t tiles = ivl::size_at(out, 0), positions = ivl::size_at(out, 1);
  const int64_t width = ivl::size_at(out, 2);
  require(heads >= 1 && width >= 1 && width % heads == 0 && width / heads % ivl::kPanel == 0,
          "head width");
  const float* from = ivl::numbers<float>(qkv, "qkv", {tiles, positions, 3 * width});
  const ivl::TileAttention args = {from, to, tiles, positions, heads, width / heads};
  nb::gil_scoped_release unlocked;
  ivl::tile_attention(args);
}

// Weights (rows, columns) of 16 or 32 bits to panels.
void pack(int type_number, const ConstArray& weight, float float16_most, const Array& panels,
          const Array& scales) {
  const auto type = ivl::enum_at<ivl::Dense>(type_number, kTypes, "type");
  const ivl::Dtype dtype = ivl::float_dtype(weight, "weight");
  ivl::check_place(weight, "weight");
  ivl::check_shape(weight, "weight", {ivl::kAny, ivl::kAny});
  const int64_t rows = ivl::size_at(weight, 0), columns = ivl::size_at(weight, 1);
  const int64_t stride = (columns + ivl::kRowUnits - 1) / ivl::kRowUnits * ivl::kRowUnits;
  const int64_t num_panels = (rows + ivl::kPanel - 1) / ivl::kPanel;
  uint8_t* to = ivl::numbers<uint8_t>(panels, "panels",
                                      {num_panels, ivl::kPanel * stride * value_bytes(type)});
  float* scale = ivl::numbers<float>(scales, "a scale for each row", {rows});
  const void* from = weight.data();
  nb::gil_scoped_release unlocked;
  ivl::dense_pack(type, from, static_cast<int>(dtype), rows, columns, stride, float16_most, to,
                  scale);
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
  m.def("dense_pack", &pack, nb::arg("type"), nb::arg("weight"), nb::arg("float16_most"),
        nb::arg("panels"), nb::arg("scales"));
  m.def("tile_attention", &attend, nb::arg("qkv"), nb::arg("heads"), nb::arg("out"));
}
