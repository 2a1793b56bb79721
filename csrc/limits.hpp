// The limits of the machine, measured on all threads: what bench/matmul.py holds the kernels against.
#pragma once

#include <cstdint>

namespace ivl {

// Bytes a second that all threads together read, once through `num_bytes` of written memory.
double read_bandwidth(int64_t num_bytes);

// Operations a second, two for a product of bytes that is added up, of all threads together.
double byte_products(int64_t rounds);

}  // namespace ivl
