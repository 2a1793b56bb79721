// The limits of the machine, measured on all threads; for bench/matmul.py.
#include <nanobind/nanobind.h>

#include <chrono>
#include <stdexcept>

#include "memory.hpp"
#include "select.hpp"
#include "threads.hpp"
#include "variant/limits.hpp"

namespace nb = nanobind;

namespace {

const ivl::LimitKernels& kernels() { IVL_SELECT(limit_kernels) }

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Bytes a second that all threads together read, once through `num_bytes` of written memory.
double read_bandwidth(int64_t num_bytes) {
  constexpr int64_t kPart = int64_t{1} << 20;
  if (num_bytes < 0) throw std::invalid_argument("num_bytes is negative");
  const int64_t parts = num_bytes / kPart;
  ivl::Buffer buffer(static_cast<size_t>(parts * kPart));
  uint8_t* data = buffer.data();
  ivl::parallel_for(parts, [&](int64_t part) {
    for (int64_t i = 0; i < kPart; ++i) data[part * kPart + i] = static_cast<uint8_t>(i * 7 + part);
  });
  ivl::Buffer results(static_cast<size_t>(8 * parts));
  const auto start = std::chrono::steady_clock::now();
  ivl::parallel_for(parts, [&](int64_t part) {
    results.as<uint64_t>()[part] = kernels().read_all(data + part * kPart, kPart);
  });
  return static_cast<double>(parts * kPart) / seconds_since(start);
}

// Operations a second, two for a product of bytes that is added up, of all threads together.
double byte_products(int64_t rounds) {
  const int64_t tasks = 8 * ivl::num_threads();
  ivl::Buffer results(static_cast<size_t>(4 * tasks));
  const auto start = std::chrono::steady_clock::now();
  ivl::parallel_for(tasks, [&](int64_t task) {
    results.as<float>()[task] = kernels().multiply_bytes(rounds);
  });
  const double operations = static_cast<double>(tasks * rounds * kernels().operations_per_round());
  return operations / seconds_since(start);
}

}  // namespace

void bind_limits(nb::module_& m) {
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  m.def("read_bandwidth", &read_bandwidth, Unlocked());
  m.def("byte_products", &byte_products, Unlocked());
}
