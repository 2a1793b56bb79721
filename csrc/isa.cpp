#include "isa.hpp"

#include <atomic>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

#include <cstdint>
#endif

namespace ivl {
namespace {

#if defined(__x86_64__) || defined(__i386__)
// Registers that the operating system saves and restores (XCR0), by the instruction's bytes, since
// the intrinsic would need a compiler flag of its own.
uint64_t saved_registers() {
  uint32_t low, high;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

struct Features {
  bool avx2 = false, avx512 = false;

  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
    if (!osxsave) return;
    const uint64_t saved = saved_registers();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const bool bmi2 = b & (1u << 8);
    avx2 = (saved & 0x06) == 0x06 && fma && f16c && bmi2 && (b & (1u << 5));
    const bool f = b & (1u << 16), dq = b & (1u << 17), bw = b & (1u << 30), vl = b & (1u << 31);
    const bool vbmi = c & (1u << 1), vnni = c & (1u << 11);
    avx512 = avx2 && (saved & 0xe6) == 0xe6 && f && dq && bw && vl && vbmi && vnni;
  }
};
#endif

// An Isa, or kNone before one was chosen. Any thread may read it or choose.
constexpr int kNone = -1;
std::atomic<int> chosen{kNone};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::neon: return "neon";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    default: return "portable";
  }
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable = {Isa::portable};
#if defined(IVL_HAS_NEON)
  usable.push_back(Isa::neon);
#endif
#if defined(__x86_64__) || defined(__i386__)
  static const Features features;
#if defined(IVL_HAS_AVX2)
  if (features.avx2) usable.push_back(Isa::avx2);
#endif
#if defined(IVL_HAS_AVX512)
  if (features.avx512) usable.push_back(Isa::avx512);
#endif
#endif
  return usable;
}

Isa current_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa == kNone) {
    const int best = static_cast<int>(usable_isas().back());
    // What another thread has chosen in the meantime stays.
    if (chosen.compare_exchange_strong(isa, best)) isa = best;
  }
  return static_cast<Isa>(isa);
}

bool use_isa(const std::string& name) {
  for (Isa isa : usable_isas()) {
    if (name == isa_name(isa)) {
      chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace ivl
