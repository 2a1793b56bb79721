// Which instruction sets this build has kernels for, which of them the processor can run, and which
// one is in use.
#pragma once

#include <string>
#include <vector>

namespace ivl {

enum class Isa { portable, neon, avx2, avx512 };

const char* isa_name(Isa isa);

// The sets that are both compiled in and supported by this processor and its operating system, the
// slowest first; `portable` is always among them.
std::vector<Isa> usable_isas();

// The set whose kernels run now: the last of `usable_isas()`, unless `use_isa` chose another.
Isa current_isa();

// Chooses a set by its name. False, and nothing changed, when it is not usable here.
bool use_isa(const std::string& name);

}  // namespace ivl
