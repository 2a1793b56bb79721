// Vectors of 16 lanes, one for each row of a panel, in the instruction set that this file is
// compiled for. The kernels are written once in these terms:
//
//   Bytes    64 unsigned bytes: 16 lanes of 4, the weights of one row in each lane
//   Floats   16 float32, one in each lane
//   Sum      a dot product in each lane, of unsigned weights and signed activations; exact
//
// Everything here is `static`: the same name means other instructions in another variant, so
// nothing may be shared between them by the linker. For the same reason no templates of the
// standard library are used.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__)
#include "simd_avx512.hpp"
#elif defined(__AVX2__)
#include "simd_avx2.hpp"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.hpp"
#else
#include "simd_portable.hpp"
#endif
