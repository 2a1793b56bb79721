#include "isa.hpp"

#include <atomic>

#include "isa_list.hpp"  // IVL_FOR_EACH_ISA; CMakeLists.txt writes it
#include "processor.hpp"

namespace ivl {

#define IVL_DECLARE(name, runs) \
  namespace name { extern const Kernels kernels; }
IVL_FOR_EACH_ISA(IVL_DECLARE)

namespace {

#define IVL_DEFINE(name, runs) constexpr Isa k_##name = {#name, &name::kernels};
IVL_FOR_EACH_ISA(IVL_DEFINE)

std::vector<const Isa*> find_usable() {
  [[maybe_unused]] const Processor& has = processor();
  std::vector<const Isa*> usable;
#define IVL_ADD(name, runs) \
  if (runs) usable.push_back(&k_##name);
  IVL_FOR_EACH_ISA(IVL_ADD)
  return usable;
}

// Null before one was chosen. Any thread may read it or choose.
std::atomic<const Isa*> chosen{nullptr};

}  // namespace

const std::vector<const Isa*>& usable_isas() {
  static const std::vector<const Isa*> usable = find_usable();
  return usable;
}

const Isa& current_isa() {
  const Isa* isa = chosen.load(std::memory_order_relaxed);
  if (isa == nullptr) {
    const Isa* best = usable_isas().back();
    // What another thread has chosen in the meantime stays.
    if (chosen.compare_exchange_strong(isa, best)) isa = best;
  }
  return *isa;
}

bool use_isa(const std::string& name) {
  for (const Isa* isa : usable_isas()) {
    if (name == isa->name) {
      chosen.store(isa, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace ivl
