// Choosing the kernels of the instruction set in use: IVL_SELECT(matmul_kernels) is
// `avx512::matmul_kernels` where that is what runs. The variants' headers declare them.
#pragma once

#include "isa.hpp"

#if defined(IVL_HAS_AVX512)
#define IVL_CASE_AVX512(name) case ::ivl::Isa::avx512: return ::ivl::avx512::name;
#else
#define IVL_CASE_AVX512(name)
#endif
#if defined(IVL_HAS_AVX2)
#define IVL_CASE_AVX2(name) case ::ivl::Isa::avx2: return ::ivl::avx2::name;
#else
#define IVL_CASE_AVX2(name)
#endif
#if defined(IVL_HAS_NEON)
#define IVL_CASE_NEON(name) case ::ivl::Isa::neon: return ::ivl::neon::name;
#else
#define IVL_CASE_NEON(name)
#endif

// The body of a function that returns a reference to them.
#define IVL_SELECT(name)                       \
  switch (::ivl::current_isa()) {              \
    IVL_CASE_AVX512(name)                      \
    IVL_CASE_AVX2(name)                        \
    IVL_CASE_NEON(name)                        \
    default: return ::ivl::portable::name;     \
  }
