// Products of packed matrices with quantized activations. docs/kernels.md explains the loops.
#include "kernels.hpp"

#include "levels.hpp"
#include "numbers.hpp"

namespace ivl {
namespace IVL_VARIANT {
namespace {

constexpr int64_t kTileRows = 12;     // of ivl::QuantizedRows
constexpr int64_t kSliceGroups = 32;  // groups whose unpacked levels stay in the first cache
constexpr int64_t kBlockPanels = 8;   // panels that go over one slice of the activations

constexpr int64_t kPrefetchBytes = 8192;  // how far ahead weights are asked for; measured

// Activations as the kernels of one kind want them.
struct Prepared {
  RowsView rows;
  const int32_t* starts;  // what each sum begins with, in the order of half_sums or of scales
  const float* sums;      // what each min is multiplied with, in the same order
};

// One slice of a panel, unpacked.
struct Slice {
  alignas(64) uint8_t levels[kSliceGroups][8][64];
  float scales[kSliceGroups][6][16];  // scale, base and min of the first half, then of the second
};

// Adds the products of one group to the accumulators of R rows of activations.
template <int LIMIT, int HALVES, bool OFFSET, bool MIN, int R, class LoadLevels, class LoadScales>
IVL_INLINE void add_group(LoadLevels&& levels, LoadScales&& scales, const int8_t* values,
                          const int32_t* starts, const float* factors, const float* sums,
                          int64_t tile_rows, Floats* acc) {
  constexpr int kSteps = 8 / HALVES;
#pragma GCC unroll 2
  for (int h = 0; h < HALVES; ++h) {
    Sum sum[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      sum[r] = sum_from(OFFSET && !(kSignedBytes && LIMIT == 256) ? starts[h * tile_rows + r]
                                                                   : kFloatBits);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kSteps; ++v) {
      const Bytes w = levels(h * kSteps + v);
      const int8_t* column = values + 4 * (h * kSteps + v);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        // The step is known when this is compiled, since the loop is unrolled.
        sum_add<LIMIT>(sum[r], w, column + 32 * r, v);
      }
    }
    const Floats scale = scales(3 * h), base = scales(3 * h + 1);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      acc[r] = multiply_add(sum_scaled<LIMIT>(sum[r], scale, base), splat(factors[r]), acc[r]);
    }
    if constexpr (MIN) {
      const Floats min = scales(3 * h + 2);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        acc[r] = multiply_add(min, splat(sums[h * tile_rows + r]), acc[r]);
      }
    }
  }
}

// Rows [first, first + R) of one tile with one slice; `acc` (tile_rows, 16) goes on from before.
template <int LIMIT, int HALVES, bool OFFSET, bool MIN, int R>
void multiply_rows(const Slice& slice, int64_t num_groups, const int8_t* values,
                   const int32_t* starts, const float* factors, const float* sums,
                   int64_t tile_rows, float* out) {
  Floats acc[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) acc[r] = load_floats(out + 16 * r);
  for (int64_t g = 0; g < num_groups; ++g) {
    add_group<LIMIT, HALVES, OFFSET, MIN, R>(
        [&](int v) { return load_bytes(slice.levels[g][v]); },
        [&](int i) { return load_floats(slice.scales[g][i]); }, values, starts, factors, sums,
        tile_rows, acc);
    values += 32 * tile_rows;
    factors += tile_rows;
    starts += OFFSET ? HALVES * tile_rows : 0;
    sums += MIN ? HALVES * tile_rows : 0;
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) store_floats(out + 16 * r, acc[r]);
}

// Part of a tile: blocks of the sizes of IVL_ROW_BLOCKS, one after the other.
template <int LIMIT, int HALVES, bool OFFSET, bool MIN, int R, int... SMALLER>
IVL_INLINE void multiply_tile(const Slice& slice, int64_t num_groups, const int8_t* values,
                              const int32_t* starts, const float* factors, const float* sums,
                              int64_t tile_rows, int64_t row, float* out) {
  for (; row + R <= tile_rows; row += R) {
    multiply_rows<LIMIT, HALVES, OFFSET, MIN, R>(slice, num_groups, values + 32 * row,
                                                 starts + row, factors + row, sums + row,
                                                 tile_rows, out + 16 * row);
  }
  if constexpr (sizeof...(SMALLER) > 0) {
    multiply_tile<LIMIT, HALVES, OFFSET, MIN, SMALLER...>(
        slice, num_groups, values, starts, factors, sums, tile_rows, row, out);
  }
}

// Every tile of the activations with one slice, which begins at group `first`.
template <int LIMIT, int HALVES, bool OFFSET, bool MIN>
void multiply_slice(const Slice& slice, int64_t first, int64_t num_groups, const Prepared& x,
                    float* out) {
  const int64_t groups = x.rows.columns / kGroupColumns;
  for (int64_t row = 0; row < x.rows.num_rows; row += kTileRows) {
    const int64_t left = x.rows.num_rows - row, rows = left < kTileRows ? left : kTileRows;
    const int64_t at = row * groups + first * rows;
    multiply_tile<LIMIT, HALVES, OFFSET, MIN, IVL_ROW_BLOCKS>(
        slice, num_groups, x.rows.values + 32 * at, OFFSET ? x.starts + HALVES * at : x.starts,
        x.rows.scales + at, MIN ? x.sums + HALVES * at : x.sums, rows, 0, out + 16 * row);
  }
}

template <int INDEX>
void unpack_slice(const uint8_t* scales, const uint8_t* planes, int64_t first, int64_t num_groups,
                  Slice& slice) {
  constexpr Layout layout = kLayouts[INDEX];
  constexpr Kind kind = kind_of(layout);
  constexpr int64_t per_block = layout.block / kGroupColumns;
  for (int64_t g = 0; g < num_groups; g += per_block) {
    const auto reader =
        ScaleReader<layout.scaling>::at(scales + (first + g) / per_block * layout.scale_bytes);
    for (int64_t j = 0; j < per_block; ++j) {
      Bytes w[8];
      load_levels<layout.bits, layout.table>(planes + (first + g + j) * level_bytes(layout), w);
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) store_bytes(slice.levels[g + j][v], w[v]);
      GroupScales group;
      reader.group(j, group);
#pragma GCC unroll 2
      for (int h = 0; h < kind.halves; ++h) {
        store_floats(slice.scales[g + j][3 * h], group.scale[h]);
        store_floats(slice.scales[g + j][3 * h + 1], group.base[h]);
        if (kind.min) store_floats(slice.scales[g + j][3 * h + 2], group.min[h]);
      }
    }
  }
}

// Rows [row, row + R) of the only tile times a panel: levels go from memory to registers, and into
// the products at once.
template <int INDEX, int R>
void multiply_few(const uint8_t* scales, const uint8_t* planes, const Prepared& x, int64_t row,
                  float* out) {
  constexpr Layout layout = kLayouts[INDEX];
  constexpr Kind kind = kind_of(layout);
  constexpr int64_t per_block = layout.block / kGroupColumns, size = level_bytes(layout);
  const int64_t groups = x.rows.columns / kGroupColumns, tile_rows = x.rows.num_rows;
  const int8_t* values = x.rows.values + 32 * row;
  const int32_t* starts = x.starts + row;
  const float *factors = x.rows.scales + row, *sums = x.sums + row;
  Floats acc[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = zeros();
  for (int64_t g = 0; g < groups; g += per_block) {
    const auto reader = ScaleReader<layout.scaling>::at(scales + g / per_block * layout.scale_bytes);
    for (int64_t j = 0; j < per_block; ++j) {
#pragma GCC unroll 8
      for (int64_t line = 0; line < size; line += 64) prefetch(planes + line + kPrefetchBytes);
      Bytes w[8];
      load_levels<layout.bits, layout.table>(planes, w);
      GroupScales group;
      reader.group(j, group);
      add_group<kind.limit, kind.halves, kind.offset, kind.min, R>(
          [&](int v) { return w[v]; },
          [&](int i) {
            return i % 3 == 0   ? group.scale[i / 3]
                   : i % 3 == 1 ? group.base[i / 3]
                                : group.min[i / 3];
          },
          values, starts, factors, sums, tile_rows, acc);
      planes += size;
      values += 32 * tile_rows;
      factors += tile_rows;
      starts += kind.offset ? kind.halves * tile_rows : 0;
      sums += kind.min ? kind.halves * tile_rows : 0;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store_floats(out + 16 * (row + r), acc[r]);
}

// A panel times one tile. What does not go into one pass finds the panel in the second cache.
template <int INDEX, int R, int... SMALLER>
IVL_INLINE void multiply_panel(const uint8_t* scales, const uint8_t* planes, const Prepared& x,
                               int64_t row, float* out) {
  if constexpr (R <= 8) {
    for (; row + R <= x.rows.num_rows; row += R) {
      multiply_few<INDEX, R>(scales, planes, x, row, out);
    }
  }
  if constexpr (sizeof...(SMALLER) > 0) {
    multiply_panel<INDEX, SMALLER...>(scales, planes, x, row, out);
  }
}

// Writes `rows` rows of one panel's accumulators (rows, 16) where they belong.
void finish(const PanelTask& task, int64_t panel, int64_t num_rows, const float* acc) {
  const int64_t first = panel * kPanelRows, left = task.rows - first;
  const int64_t width = left < kPanelRows ? left : kPanelRows;
  alignas(64) float bias[16] = {};
  if (task.bias != nullptr) memcpy(bias, task.bias + first, static_cast<size_t>(4 * width));
  const Floats added = load_floats(bias);
  const int64_t size = bytes_of(task.out_dtype);
  for (int64_t row = 0; row < num_rows; ++row) {
    uint8_t* place = static_cast<uint8_t*>(task.out) + (row * task.out_stride + first) * size;
    alignas(64) uint8_t whole[64];
    uint8_t* to = width == kPanelRows ? place : whole;
    Floats y = task.bias == nullptr ? load_floats(acc + 16 * row)
                                    : add(load_floats(acc + 16 * row), added);
    if (task.add) {
      if (to == whole) memcpy(whole, place, static_cast<size_t>(width * size));
      y = add(y, load_floats(reinterpret_cast<float*>(to)));
    }
    store_numbers(to, task.out_dtype, y);
    if (to == whole) memcpy(place, whole, static_cast<size_t>(width * size));
  }
}

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// What the scratch memory is divided into.
struct Scratch {
  Slice* slice;
  int32_t* starts;
  float* sums;
  float* acc;

  static int64_t bytes(int64_t num_rows, int64_t columns) {
    const int64_t halves = num_rows * (columns / kGroupColumns) * 2;
    return round_up(sizeof(Slice)) + 2 * round_up(4 * halves) + kBlockPanels * num_rows * 64;
  }
  Scratch(uint8_t* memory, int64_t num_rows, int64_t columns) {
    const int64_t halves = num_rows * (columns / kGroupColumns) * 2;
    slice = reinterpret_cast<Slice*>(memory);
    memory += round_up(sizeof(Slice));
    starts = reinterpret_cast<int32_t*>(memory);
    memory += round_up(4 * halves);
    sums = reinterpret_cast<float*>(memory);
    memory += round_up(4 * halves);
    acc = reinterpret_cast<float*>(memory);
  }
};

// A level less its offset, times the activations, is the sum of the levels' products less offset
// times the sum of the activations: sums begin with that.
template <int INDEX>
Prepared prepare(const RowsView& rows, const Scratch& scratch) {
  constexpr Layout layout = kLayouts[INDEX];
  constexpr Kind kind = kind_of(layout);
  const int64_t groups = rows.columns / kGroupColumns;
  for (int64_t row = 0; row < rows.num_rows; row += kTileRows) {
    const int64_t left = rows.num_rows - row, height = left < kTileRows ? left : kTileRows;
    const int64_t size = height * groups, at = row * groups;
    const int32_t* halves = rows.half_sums + 2 * at;
    if constexpr (kind.offset && kind.halves == 2) {
      for (int64_t i = 0; i < 2 * size; ++i) {
        scratch.starts[2 * at + i] = kFloatBits - layout.offset * halves[i];
      }
    }
    if constexpr (kind.offset && kind.halves == 1) {
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t r = 0; r < height; ++r) {
          const int32_t sum = halves[2 * g * height + r] + halves[(2 * g + 1) * height + r];
          scratch.starts[at + g * height + r] = kFloatBits - layout.offset * sum;
        }
      }
    }
    if constexpr (kind.min && kind.halves == 2) {
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t r = 0; r < height; ++r) {
          const float scale = rows.scales[at + g * height + r];
          const int64_t first = 2 * at + 2 * g * height + r;
          scratch.sums[first] = scale * static_cast<float>(rows.half_sums[first]);
          scratch.sums[first + height] = scale * static_cast<float>(rows.half_sums[first + height]);
        }
      }
    }
  }
  return {rows, scratch.starts, kind.halves == 2 ? scratch.sums : rows.weighted_sums};
}

// Up to one tile of rows.
template <int INDEX>
void multiply_by_rows(const PanelTask& task, const RowsView& rows, uint8_t* memory) {
  constexpr Layout layout = kLayouts[INDEX];
  const Scratch scratch(memory, rows.num_rows, rows.columns);
  const Prepared x = prepare<INDEX>(rows, scratch);
  const int64_t size = panel_bytes(layout, task.columns);
  const int64_t planes_at = scale_section(layout, task.columns);
  for (int64_t panel = task.first_panel; panel < task.last_panel; ++panel) {
    const uint8_t* packed = task.packed + panel * size;
    multiply_panel<INDEX, IVL_ROW_BLOCKS>(packed, packed + planes_at, x, 0, scratch.acc);
    finish(task, panel, rows.num_rows, scratch.acc);
  }
}

// More rows: panels are unpacked slice by slice.
template <int INDEX>
void multiply_by_slices(const PanelTask& task, const RowsView& rows, uint8_t* memory) {
  constexpr Layout layout = kLayouts[INDEX];
  constexpr Kind kind = kind_of(layout);
  const Scratch scratch(memory, rows.num_rows, rows.columns);
  const Prepared x = prepare<INDEX>(rows, scratch);
  const int64_t groups = task.columns / kGroupColumns, size = panel_bytes(layout, task.columns);
  const int64_t planes_at = scale_section(layout, task.columns);
  for (int64_t from = task.first_panel; from < task.last_panel; from += kBlockPanels) {
    const int64_t left = task.last_panel - from, panels = left < kBlockPanels ? left : kBlockPanels;
    memset(scratch.acc, 0, static_cast<size_t>(panels * rows.num_rows * 64));
    for (int64_t first = 0; first < groups; first += kSliceGroups) {
      const int64_t rest = groups - first, in_slice = rest < kSliceGroups ? rest : kSliceGroups;
      for (int64_t p = 0; p < panels; ++p) {
        const uint8_t* packed = task.packed + (from + p) * size;
        unpack_slice<INDEX>(packed, packed + planes_at, first, in_slice, *scratch.slice);
        multiply_slice<kind.limit, kind.halves, kind.offset, kind.min>(
            *scratch.slice, first, in_slice, x, scratch.acc + p * rows.num_rows * 16);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      finish(task, from + p, rows.num_rows, scratch.acc + p * rows.num_rows * 16);
    }
  }
}

template <int INDEX, bool SLICES>
void multiply_format(int index, const PanelTask& task, const RowsView& rows, uint8_t* memory) {
  if (index != INDEX) {
    if constexpr (INDEX + 1 < static_cast<int>(sizeof(kLayouts) / sizeof(kLayouts[0]))) {
      multiply_format<INDEX + 1, SLICES>(index, task, rows, memory);
    }
  } else if constexpr (SLICES) {
    multiply_by_slices<INDEX>(task, rows, memory);
  } else {
    multiply_by_rows<INDEX>(task, rows, memory);
  }
}

void multiply_many(const PanelTask& task, const RowsView& rows, uint8_t* scratch) {
  multiply_format<0, true>(layout_index(task.type_id), task, rows, scratch);
}

void multiply_any(const PanelTask& task, const RowsView& rows, uint8_t* scratch) {
  if (rows.num_rows > kTileRows) return multiply_many(task, rows, scratch);
  multiply_format<0, false>(layout_index(task.type_id), task, rows, scratch);
}

void quantize(const void* x, Dtype dtype, int64_t row_stride, int64_t first_row, int64_t last_row,
              int64_t num_rows, int64_t first_group, int64_t last_group, int64_t groups,
              int8_t* values, float* scales, float* weighted_sums, int32_t* half_sums) {
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t tile = row / kTileRows * kTileRows, r = row - tile;
    const int64_t left = num_rows - tile, height = left < kTileRows ? left : kTileRows;
    for (int64_t g = first_group; g < last_group; ++g) {
      const int64_t from = row * row_stride + 32 * (g - first_group);
      const uint8_t* place = static_cast<const uint8_t*>(x) + from * bytes_of(dtype);
      const Floats a = load_numbers(place, dtype);
      const Floats b = load_numbers(place + 16 * bytes_of(dtype), dtype);
      const float most = largest(maximum(magnitude(a), magnitude(b)));
      // 0 for numbers, NaN for what is none.
      const float none = total(multiply_add(a, zeros(), multiply(b, zeros())));
      const bool usable = most > 1e-30f && none == 0.0f;
      const Floats inverse = splat(usable ? 127.0f / most : 0.0f);
      const int64_t at = tile * groups + g * height + r;
      const int64_t half = 2 * (tile * groups + g * height) + r;
      const Floats nothing = zeros();
      half_sums[half] = to_int8(values + 32 * at, usable ? multiply(a, inverse) : nothing);
      half_sums[half + height] =
          to_int8(values + 32 * at + 16, usable ? multiply(b, inverse) : nothing);
      scales[at] = usable ? most / 127.0f : none;
      weighted_sums[at] = scales[at] * static_cast<float>(half_sums[half] + half_sums[half + height]);
    }
  }
}

}  // namespace

const MatmulKernels matmul_kernels = {quantize, pack_levels,   Scratch::bytes,
                                      multiply_any, multiply_many, kTileRows + 1};

}  // namespace IVL_VARIANT
}  // namespace ivl
