// Memory from the system. The kernels of an instruction set (csrc/variant/) include this too, so
// there are plain functions here and nothing that is compiled twice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ivl {

// Uninitialised bytes that begin on a cache line. Throws std::bad_alloc.
uint8_t* allocate(size_t num_bytes);
void release(uint8_t* data) noexcept;  // of `allocate`, or null

// Lets one call of `allocate` fail: the next but `after`; none when it is negative. For tests of
// what becomes of everything else then.
void fail_allocation(int64_t after);

}  // namespace ivl
