// What this processor can do, and its operating system lets programs use.
#pragma once

namespace ivl {

// By the names of the compilers' options: avx2 is what -mavx2 compiles for.
struct Processor {
  bool avx2, fma, f16c, bmi2;
  bool avx512f, avx512bw, avx512dq, avx512vl, avx512vnni, avx512vbmi;
  bool avx512fp16, avx512bf16;
};

const Processor& processor();

}  // namespace ivl
