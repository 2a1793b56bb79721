#include "dense_matrix.hpp"

#include <algorithm>
#include <stdexcept>

#include "bfloat16_matmul.hpp"
#include "isa.hpp"
#include "processor.hpp"
#include "threads.hpp"

namespace ivl {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t stride_of(int64_t width) { return divide_up(width, kRowUnits) * kRowUnits; }
int64_t value_bytes(Dense type) { return type == Dense::int8 ? 1 : 2; }

void check_type(Dense type) {
  if (type == Dense::float16 && !has_float16_products()) {
    throw std::invalid_argument("there are no float16 products here");
  }
  if (type == Dense::bfloat16 && !has_bfloat16_products()) {
    throw std::invalid_argument("there are no bfloat16 products here");
  }
}

}  // namespace

bool has_float16_products() {
  return processor().avx512fp16 && kernels().tile_attention.has_float16;
}

void DenseActivations::fill(const float* x, int64_t num_rows, int64_t width, const NormArgs& norm) {
  check_type(type_);
  if (num_rows < 1 || width < 1) throw std::invalid_argument("rows: there are none");
  if (norm.kind != Norm::none && !norm.weight) throw std::invalid_argument("a norm has a weight");
  num_rows_ = 0;  // should there be no memory
  const int64_t stride = stride_of(width);
  values_.reserve(static_cast<size_t>(num_rows * stride * value_bytes(type_)));
  scales_.reserve(static_cast<size_t>(4 * num_rows));
  sums_.reserve(static_cast<size_t>(4 * num_rows));
  num_rows_ = num_rows;
  width_ = width;
  rows_ = {values_.data(), scales_.as<float>(), sums_.as<int32_t>(), stride};
  const DenseKernels& of_isa = kernels().dense;
  constexpr int64_t kRows = 16;
  parallel_for(divide_up(num_rows, kRows), [&](int64_t task) {
    const int64_t first = task * kRows;
    of_isa.prepare(type_, x, width, first, std::min(kRows, num_rows - first), norm, rows_);
  });
}

DenseMatrix::DenseMatrix(Dense type, const std::vector<Part>& parts, int64_t inputs,
                         const float* bias)
    : type_(type), inputs_(inputs), stride_(stride_of(inputs)) {
  for (const Part& part : parts) {
    if (part.rows < 0 || outputs_ % kPanel != 0) {
      throw std::invalid_argument("a part that is not the last has no whole number of panels");
    }
    outputs_ += part.rows;
  }
  const int64_t panel_bytes = kPanel * stride_ * value_bytes(type);
  panels_ = WeightMemory(static_cast<size_t>(divide_up(outputs_, kPanel) * panel_bytes));
  scales_.resize(static_cast<size_t>(outputs_));
  if (bias) bias_.assign(bias, bias + outputs_);
  const DensePackKernels& of_isa = kernels().dense_pack;
  int64_t first = 0;
  for (const Part& part : parts) {
    const DensePack pack = {type,    part.weight, part.dtype,
                            part.rows, inputs,   stride_,
                            panels_.data() + first / kPanel * panel_bytes, scales_.data() + first};
    parallel_for(divide_up(part.rows, kPanel), [&](int64_t panel) {
      static thread_local Buffer scratch;
      scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(pack)));
      of_isa.pack(pack, panel, scratch.data());
    });
    first += part.rows;
  }
  const auto is_one = [](float scale) { return scale == 1.0f; };
  if (type != Dense::int8 && std::all_of(scales_.begin(), scales_.end(), is_one)) {
    scales_ = {};
  }
}

void DenseMatrix::multiply(const DenseActivations& x, Epilogue epilogue,
                           const float* channel_scales, float* out) const {
  check_type(type_);
  if (x.type() != type_ || x.num_rows() < 1 || x.width() != inputs_) {
    throw std::invalid_argument("rows: not of the type and the width of the weight");
  }
  const int64_t num_rows = x.num_rows(), num_panels = divide_up(outputs_, kPanel);
  const DenseProduct product = {type_, x.rows(), panels_.data(),
                                scales_.empty() ? nullptr : scales_.data(),
                                bias_.empty() ? nullptr : bias_.data(), outputs_, out, epilogue,
                                channel_scales};
  // Panels that stay in the second-level cache while the rows pass by; and rows enough that
  // fetching the panels is a small part, few enough that there is work for every thread.
  constexpr int64_t kCacheBytes = 768 * 1024, kMostRows = 15 * kTileRows, kTasks = 6;
  const int64_t panel_bytes = kPanel * stride_ * value_bytes(type_);
  const int64_t group =
      std::clamp<int64_t>(kCacheBytes / panel_bytes, 1, std::max<int64_t>(1, num_panels));
  const int64_t groups = divide_up(num_panels, group);
  const int64_t share = divide_up(num_rows * groups, kTasks * num_threads() * kTileRows);
  const int64_t rows = std::min(share * kTileRows, kMostRows), chunks = divide_up(num_rows, rows);
  const DenseKernels& of_isa = kernels().dense;
  parallel_for(groups * chunks, [&](int64_t task) {
    const int64_t panel = task / chunks * group, row = task % chunks * rows;
    of_isa.multiply(product, row, std::min(rows, num_rows - row), panel,
                    std::min(group, num_panels - panel));
  });
}

void tile_attention(const TileAttention& args) {
  check_type(args.type);
  const TileAttentionKernels& of_isa = kernels().tile_attention;
  if (args.type == Dense::int8) throw std::invalid_argument("attention has no products of int8");
  if (args.heads < 1 || args.head_dim < 1 || args.head_dim % kPanel != 0) {
    throw std::invalid_argument("heads must be of whole panels");
  }
  constexpr int64_t kQueries = 8 * kTileRows;  // of one task
  const int64_t heads = args.heads, size = stride_of(args.positions) * args.head_dim;
  std::vector<uint16_t> keys(static_cast<size_t>(heads * size));
  std::vector<uint16_t> values(static_cast<size_t>(heads * size));
  const int64_t blocks = divide_up(args.positions, kQueries);
  for (int64_t tile = 0; tile < args.tiles; ++tile) {
    parallel_for(heads, [&](int64_t head) {
      of_isa.pack_head(args, tile, head, keys.data() + head * size, values.data() + head * size);
    });
    parallel_for(heads * blocks, [&](int64_t task) {
      const int64_t head = task / blocks, start = task % blocks * kQueries;
      const int64_t end = std::min(start + kQueries, args.positions);
      for (int64_t first = start; first < end; first += kTileRows) {
        const int count = static_cast<int>(std::min<int64_t>(kTileRows, end - first));
        of_isa.attend(args, tile, head, first, count, keys.data() + head * size,
                      values.data() + head * size);
      }
    });
  }
}

}  // namespace ivl
