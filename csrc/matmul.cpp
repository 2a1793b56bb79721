#include "matmul.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include "isa.hpp"
#include "packing.hpp"
#include "threads.hpp"

namespace ivl {
namespace {

// Panels of one task: enough to read for a while in one place, few enough that every thread gets
// several tasks of a product.
constexpr int64_t kTaskPanels = 8;

const Layout& find_layout(int type_id) {
  const int index = layout_index(type_id);
  if (index < 0) throw std::invalid_argument("no kernel for tensor type " + std::to_string(type_id));
  return kLayouts[index];
}

int64_t num_panels(const PackedMatrix& matrix) {
  return (matrix.rows() + kPanelRows - 1) / kPanelRows;
}

void run_panels(const PanelTask& task, const QuantizedRows& x) {
  const RowsView rows = {x.values(), x.scales(), x.weighted_sums(), x.half_sums(), x.num_rows(),
                         x.columns()};
  static thread_local Buffer scratch;
  const MatmulKernels& of_isa = kernels().matmul;
  scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(x.num_rows(), x.columns())));
  const bool many = of_isa.multiply_many && x.num_rows() >= of_isa.many_rows;
  (many ? of_isa.multiply_many : of_isa.multiply)(task, rows, scratch.data());
}

}  // namespace

bool PackedMatrix::supports(int type_id) { return layout_index(type_id) >= 0; }

int64_t PackedMatrix::row_bytes(int type_id, int64_t columns) {
  const Layout& layout = find_layout(type_id);
  if (columns < 0 || columns % layout.block != 0) {
    throw std::invalid_argument("columns are no whole number of blocks");
  }
  return columns / layout.block * layout.block_bytes;
}

PackedMatrix::PackedMatrix(const std::vector<Part>& parts, int type_id, int64_t columns)
    : type_id_(type_id), rows_(0), columns_(columns) {
  static_assert(kPartRows == kPanelRows, "a part ends where a panel does");
  const Layout& layout = find_layout(type_id);
  row_bytes(type_id, columns);
  for (const Part& part : parts) {
    if (part.rows < 0 || rows_ % kPartRows != 0) {
      throw std::invalid_argument("a part that is not the last has no whole number of panels");
    }
    rows_ += part.rows;
  }
  const int64_t size = panel_bytes(layout, columns);
  packed_ = WeightMemory(static_cast<size_t>(num_panels(*this) * size));
  uint8_t* to = packed_.data();
  for (const Part& part : parts) {
    const int64_t panels = (part.rows + kPanelRows - 1) / kPanelRows;
    parallel_for(panels, [&](int64_t panel) {
      pack_panel(layout, part.blocks, part.rows, columns, panel, to);
    });
    to += panels * size;
  }
}

void PackedMatrix::rows_at(const int64_t* ids, int64_t num_ids, float* out) const {
  const Layout& layout = find_layout(type_id_);
  const auto one = [&](int64_t i) {
    unpack_row(layout, packed_.data(), columns_, ids[i], out + i * columns_);
  };
  if (num_ids < 8) {
    for (int64_t i = 0; i < num_ids; ++i) one(i);
  } else {
    parallel_for(num_ids, one);
  }
}

void QuantizedRows::quantize(const void* x, Dtype dtype, int64_t num_rows, int64_t columns) {
  resize(num_rows, columns);
  const auto tile = [&](int64_t index) {
    quantize_groups(x, dtype, columns, index, 0, num_groups());
  };
  if (num_tiles() > 1) {
    parallel_for(num_tiles(), tile);
  } else if (num_tiles() == 1) {
    tile(0);
  }
}

void QuantizedRows::resize(int64_t num_rows, int64_t columns) {
  num_rows_ = num_rows;
  columns_ = columns;
  const int64_t size = num_rows * columns;
  scales_at_ = static_cast<size_t>((size + 63) / 64 * 64);
  memory_.reserve(scales_at_ + static_cast<size_t>(16 * size / kGroup));
}

void QuantizedRows::quantize_part(const float* x, int64_t row_stride, int64_t tile,
                                  int64_t first_group, int64_t num_groups) {
  quantize_groups(x, Dtype::float32, row_stride, tile, first_group, num_groups);
}

void QuantizedRows::quantize_groups(const void* x, Dtype dtype, int64_t row_stride, int64_t tile,
                                    int64_t first_group, int64_t count) {
  const int64_t first = tile * kTileRows, all = num_rows_ * num_groups();
  const int64_t last = first + kTileRows < num_rows_ ? first + kTileRows : num_rows_;
  float* scales = reinterpret_cast<float*>(memory_.data() + scales_at_);
  kernels().matmul.quantize(x, dtype, row_stride, first, last, num_rows_, first_group,
                            first_group + count, num_groups(), memory_.as<int8_t>(), scales,
                            scales + all, reinterpret_cast<int32_t*>(scales + 2 * all));
}

void QuantizedRows::unpack(int8_t* values_out, float* scales_out) const {
  for (int64_t row = 0; row < num_rows_; ++row) {
    const int64_t tile = row / kTileRows * kTileRows;
    const int64_t height = num_rows_ - tile < kTileRows ? num_rows_ - tile : kTileRows;
    for (int64_t g = 0; g < num_groups(); ++g) {
      const int64_t at = tile * num_groups() + g * height + row - tile;
      std::memcpy(values_out + row * columns_ + kGroup * g, values() + kGroup * at, kGroup);
      scales_out[row * num_groups() + g] = scales()[at];
    }
  }
}

void matmul_outputs(const PackedMatrix& matrix, const float* bias, const QuantizedRows& x,
                    int64_t first, int64_t last, float* out, int64_t out_stride, bool add) {
  run_panels({matrix.data(), matrix.type_id(), last < matrix.rows() ? last : matrix.rows(),
              matrix.columns(), first / kPanelRows, (last + kPanelRows - 1) / kPanelRows, bias,
              out - first, Dtype::float32, out_stride, add},
             x);
}

void matmul(const PackedMatrix& matrix, const float* bias, const QuantizedRows& x, void* out,
            Dtype out_dtype) {
  if (x.num_rows() == 0) return;
  const int64_t panels = num_panels(matrix);
  parallel_for((panels + kTaskPanels - 1) / kTaskPanels, [&](int64_t task) {
    const int64_t first = task * kTaskPanels, end = first + kTaskPanels;
    run_panels({matrix.data(), matrix.type_id(), matrix.rows(), matrix.columns(), first,
                end < panels ? end : panels, bias, out, out_dtype, matrix.rows(), false},
               x);
  });
}

}  // namespace ivl
