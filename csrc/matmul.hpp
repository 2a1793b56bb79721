// Products with quantized matrices: y = x W^T + bias.
//
// A matrix is packed once, when it is loaded; the activations are quantized once for all matrices
// that share them; then come the products, one by one or, for callers that run on several threads
// themselves, some outputs of one.
//
// Results depend on neither the number of threads nor how many rows are multiplied together: each
// output is summed by one thread in the order of the columns, always the same. docs/kernels.md
// describes layouts and loops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.hpp"
#include "memory.hpp"

namespace ivl {

// Weights that stay quantized, 16 rows interleaved. Immutable.
class PackedMatrix {
 public:
  // Block formats by their numbers in GGUF files; AWQ has none there.
  static constexpr int kAwq = -1;
  static bool supports(int type_id);
  // Bytes of a row of blocks. Throws std::invalid_argument for a format that is not supported, and
  // for columns that blocks do not divide.
  static int64_t row_bytes(int type_id, int64_t columns);

  // Rows of a matrix one after the other, each columns / block size blocks.
  struct Part {
    const uint8_t* blocks;
    int64_t rows;
  };

  // The rows of all parts, which are not kept. Throws std::invalid_argument as `row_bytes` does, and
  // for a part other than the last whose rows are no multiple of kPartRows.
  PackedMatrix(const std::vector<Part>& parts, int type_id, int64_t columns);
  static constexpr int64_t kPartRows = 16;

  int type_id() const { return type_id_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  size_t num_bytes() const { return packed_.size(); }
  const uint8_t* data() const { return packed_.data(); }

  // Rows `ids` as float32 (num_ids, columns), bit for bit what ivl.quant's reference gives. Ids must
  // lie in [0, rows).
  void rows_at(const int64_t* ids, int64_t num_ids, float* out) const;

 private:
  int type_id_;
  int64_t rows_, columns_;
  WeightMemory packed_;
};

// Activations of int8, with a float32 scale for each group of 32 neighbours in a row:
// x = scale * q, scale = largest magnitude / 127. Can be filled again and again; the memory stays.
class QuantizedRows {
 public:
  static constexpr int kGroup = 32;
  // Rows are stored in tiles of so many, the last one of what is left: group by group, and in it row
  // by row, the 32 bytes. A single row is stored as it is.
  static constexpr int kTileRows = 12;

  // x (num_rows, columns), without gaps; columns is a multiple of 32; it may be unaligned. Values
  // that are not finite make their group's results NaN.
  void quantize(const void* x, Dtype dtype, int64_t num_rows, int64_t columns);

  // The same in parts, from several threads: makes room, then takes groups [first_group,
  // first_group + num_groups) of one tile of rows. x (num_rows, ...) float32 points to the first of
  // these groups in row 0.
  void resize(int64_t num_rows, int64_t columns);
  int64_t num_tiles() const { return (num_rows_ + kTileRows - 1) / kTileRows; }
  void quantize_part(const float* x, int64_t row_stride, int64_t tile, int64_t first_group,
                     int64_t num_groups);

  int64_t num_rows() const { return num_rows_; }
  int64_t columns() const { return columns_; }
  int64_t num_groups() const { return columns_ / kGroup; }
  const int8_t* values() const { return memory_.as<int8_t>(); }
  // Per group and row, in the order of the values; so are the sums.
  const float* scales() const { return reinterpret_cast<const float*>(memory_.data() + scales_at_); }
  // scale * sum of the group's values, float32.
  const float* weighted_sums() const { return scales() + num_rows_ * num_groups(); }
  // For each group of a tile: the sums of the first 16 values for all rows, then of the last 16.
  const int32_t* half_sums() const {
    return reinterpret_cast<const int32_t*>(weighted_sums() + num_rows_ * num_groups());
  }

  // The quantized activations in plain order: values (num_rows, columns), scales (num_rows, groups).
  void unpack(int8_t* values, float* scales) const;

 private:
  void quantize_groups(const void* x, Dtype dtype, int64_t row_stride, int64_t tile,
                       int64_t first_group, int64_t count);

  int64_t num_rows_ = 0, columns_ = 0;
  size_t scales_at_ = 0;
  Buffer memory_;
};

// out (num_rows, matrix rows), without gaps, on all threads. bias (matrix rows,), or null.
void matmul(const PackedMatrix& matrix, const float* bias, const QuantizedRows& x, void* out,
            Dtype out_dtype);

// Outputs [first, last) of one matrix, on this thread; first is a multiple of 16. out float32
// (num_rows, ...) points to output `first` of row 0. With `add`, products are added to what is there.
void matmul_outputs(const PackedMatrix& matrix, const float* bias, const QuantizedRows& x,
                    int64_t first, int64_t last, float* out, int64_t out_stride, bool add);

}  // namespace ivl
