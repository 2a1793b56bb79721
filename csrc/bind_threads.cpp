// Threads, as ivl.kernels.threads and bench/threads.py see them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <vector>

#include "threads.hpp"

namespace nb = nanobind;

namespace {

// How often each of `num_tasks` tasks was run by one parallel_for: for the test of the pool, which
// must run each of them once. Returns the number of tasks that were not.
int64_t tasks_not_run_once(int64_t num_tasks) {
  std::vector<std::atomic<int>> counts(static_cast<size_t>(num_tasks));
  ivl::parallel_for(num_tasks, [&](int64_t task) { counts[static_cast<size_t>(task)] += 1; });
  int64_t wrong = 0;
  for (const auto& count : counts) wrong += count.load() != 1;
  return wrong;
}

}  // namespace

void bind_threads(nb::module_& m) {
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  m.def("num_threads", &ivl::num_threads);
  m.def("set_num_threads", &ivl::set_num_threads);
  m.def("thread_pool", &ivl::thread_pool);
  m.def("use_openmp", &ivl::use_openmp);
  m.def("tasks_not_run_once", &tasks_not_run_once, Unlocked());
}
