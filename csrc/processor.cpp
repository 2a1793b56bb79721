#include "processor.hpp"

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

Processor look() {
  Processor found = {};
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return found;
  const uint64_t saved = saved_registers();
  if ((saved & 0x06) != 0x06) return found;
  found.fma = c & (1u << 12);
  found.f16c = c & (1u << 29);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  found.avx2 = b & (1u << 5);
  found.bmi2 = b & (1u << 8);
  if ((saved & 0xe6) != 0xe6) return found;
  found.avx512f = b & (1u << 16);
  found.avx512dq = b & (1u << 17);
  found.avx512bw = b & (1u << 30);
  found.avx512vl = b & (1u << 31);
  found.avx512vbmi = c & (1u << 1);
  found.avx512vnni = c & (1u << 11);
  found.avx512fp16 = d & (1u << 23);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512bf16 = a & (1u << 5);
  return found;
}
#else
Processor look() { return {}; }
#endif

}  // namespace

const Processor& processor() {
  static const Processor found = look();
  return found;
}

}  // namespace ivl
