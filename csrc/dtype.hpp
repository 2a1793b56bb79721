// Types of plain numbers.
#pragma once

#include <cstdint>

namespace ivl {

// The numbers are those of GGUF files (ggml_type).
enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 30 };

static constexpr int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

}  // namespace ivl
