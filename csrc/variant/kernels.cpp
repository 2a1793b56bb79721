// The table of this instruction set.
#include "kernels.hpp"

namespace ivl {
namespace IVL_VARIANT {

const Kernels kernels = {matmul_kernels,    float_kernels,      bfloat16_kernels,
                         pointwise_kernels, attention_kernels,  dense_kernels,
                         dense_pack_kernels, tile_attention_kernels, limit_kernels,
                         find_codec};

}  // namespace IVL_VARIANT
}  // namespace ivl
