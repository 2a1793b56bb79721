#include "dense.hpp"

#include <algorithm>
#include <vector>

#include "memory.hpp"
#include "select.hpp"
#include "threads.hpp"
#include "variant/dense_pack.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ivl {

namespace portable { extern const DenseKernels dense_kernels; }
namespace avx2 { extern const DenseKernels dense_kernels; }
namespace avx512 { extern const DenseKernels dense_kernels; }
namespace neon { extern const DenseKernels dense_kernels; }

const DenseKernels& dense_kernels() { IVL_SELECT(dense_kernels) }

namespace {
const DensePackKernels& pack_kernels() { IVL_SELECT(dense_pack_kernels) }
}  // namespace

void dense_pack(Dense type, const void* weight, int dtype, int64_t rows, int64_t columns,
                int64_t stride, float float16_most, void* panels, float* scales) {
  const DensePack pack = {weight, dtype,        rows,   columns, type == Dense::int8,
                          stride, float16_most, panels, scales};
  const DensePackKernels& of_isa = pack_kernels();
  parallel_for((rows + kPanel - 1) / kPanel, [&](int64_t panel) {
    static thread_local Buffer scratch;
    scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(pack)));
    of_isa.pack(pack, panel, scratch.data());
  });
}

#if defined(IVL_HAS_AVX512) && defined(IVL_COMPILES_FLOAT16)
#define IVL_HAS_FLOAT16_TILES 1
namespace avx512 {
void pack_tile_head(const TileAttention&, int64_t tile, int64_t head, uint16_t* keys,
                    uint16_t* values);
void tile_attention_rows(const TileAttention&, int64_t tile, int64_t head, int64_t first, int count,
                         const uint16_t* keys, const uint16_t* values);
}  // namespace avx512
#endif

bool has_float16_products() {
#if defined(IVL_HAS_FLOAT16_TILES)
  static const bool there = [] {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 23));
  }();
  return there && current_isa() == Isa::avx512;
#else
  return false;
#endif
}

void tile_attention(const TileAttention& args) {
#if defined(IVL_HAS_FLOAT16_TILES)
  constexpr int64_t kQueries = 8 * kTileRows;  // of one task
  const int64_t padded = (args.positions + kRowUnits - 1) / kRowUnits * kRowUnits;
  const int64_t heads = args.heads, size = padded * args.head_dim;
  std::vector<uint16_t> keys(static_cast<size_t>(heads * size));
  std::vector<uint16_t> values(static_cast<size_t>(heads * size));
  const int64_t blocks = (args.positions + kQueries - 1) / kQueries;
  for (int64_t tile = 0; tile < args.tiles; ++tile) {
    parallel_for(heads, [&](int64_t head) {
      avx512::pack_tile_head(args, tile, head, keys.data() + head * size,
                             values.data() + head * size);
    });
    parallel_for(heads * blocks, [&](int64_t task) {
      const int64_t head = task / blocks, start = task % blocks * kQueries;
      const int64_t end = std::min(start + kQueries, args.positions);
      for (int64_t first = start; first < end; first += kTileRows) {
        const int count = static_cast<int>(std::min<int64_t>(kTileRows, end - first));
        avx512::tile_attention_rows(args, tile, head, first, count, keys.data() + head * size,
                                    values.data() + head * size);
      }
    });
  }
#else
  (void)args;
#endif
}

}  // namespace ivl
