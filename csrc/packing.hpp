// From the blocks of a file to packed panels (layout: variant/layout.hpp), and back to weights.
#pragma once

#include <cstdint>

#include "variant/layout.hpp"

namespace ivl {

// Packs rows [16 * panel, 16 * panel + 16) of `blocks`, rows one after the other.
void pack_panel(const Layout& layout, const uint8_t* blocks, int64_t rows, int64_t columns,
                int64_t panel, uint8_t* packed);

// One row of a packed matrix as float32 (columns,).
void unpack_row(const Layout& layout, const uint8_t* packed, int64_t columns, int64_t row,
                float* out);

}  // namespace ivl
