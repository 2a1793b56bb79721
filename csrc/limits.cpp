#include "limits.hpp"

#include <chrono>
#include <stdexcept>

#include "isa.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace ivl {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double read_bandwidth(int64_t num_bytes) {
  constexpr int64_t kPart = int64_t{1} << 20;
  if (num_bytes < 0) throw std::invalid_argument("num_bytes is negative");
  const int64_t parts = num_bytes / kPart;
  Buffer buffer(static_cast<size_t>(parts * kPart));
  uint8_t* data = buffer.data();
  parallel_for(parts, [&](int64_t part) {
    for (int64_t i = 0; i < kPart; ++i) data[part * kPart + i] = static_cast<uint8_t>(i * 7 + part);
  });
  Buffer results(static_cast<size_t>(8 * parts));
  const auto start = std::chrono::steady_clock::now();
  parallel_for(parts, [&](int64_t part) {
    results.as<uint64_t>()[part] = kernels().limits.read_all(data + part * kPart, kPart);
  });
  return static_cast<double>(parts * kPart) / seconds_since(start);
}

double byte_products(int64_t rounds) {
  const LimitKernels& of_isa = kernels().limits;
  const int64_t tasks = 8 * num_threads();
  Buffer results(static_cast<size_t>(4 * tasks));
  const auto start = std::chrono::steady_clock::now();
  parallel_for(tasks, [&](int64_t task) {
    results.as<float>()[task] = of_isa.multiply_bytes(rounds);
  });
  const double operations = static_cast<double>(tasks * rounds * of_isa.operations_per_round());
  return operations / seconds_since(start);
}

}  // namespace ivl
