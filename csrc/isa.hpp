// Which instruction sets this build has kernels for, which of them the processor can run, and which
// one is in use. The list of them is in CMakeLists.txt.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace ivl {

struct Isa {
  const char* name;
  const Kernels* kernels;
};

// The sets that are both compiled in and supported by this processor and its operating system, the
// slowest first; `portable` is always among them.
const std::vector<const Isa*>& usable_isas();

// The set whose kernels run now: the last of `usable_isas()`, unless `use_isa` chose another.
const Isa& current_isa();

// Chooses a set by its name. False, and nothing changed, when it is not usable here.
bool use_isa(const std::string& name);

// Those of the set in use. Another may be chosen at any time: work that prepares data for its
// kernels keeps what it began with.
inline const Kernels& kernels() { return *current_isa().kernels; }

}  // namespace ivl
