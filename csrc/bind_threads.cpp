// Threads, as ivl.kernels.threads and bench/threads.py see them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "allocate.hpp"
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

// A parallel_for (`phases` 0) or a parallel_phases whose task `failing` throws, in the last of them:
// for the test of what becomes of the caller and the threads then.
void fail_in_task(int64_t num_tasks, int64_t failing, int64_t phases) {
  const auto body = [&](int64_t task) {
    if (task == failing) throw std::invalid_argument("task " + std::to_string(task) + " failed");
  };
  if (phases == 0) return ivl::parallel_for(num_tasks, body);
  ivl::parallel_phases(phases, [&](ivl::Team& team) {
    for (int64_t i = 0; i + 1 < phases; ++i) team.for_each(num_tasks, [](int64_t) {});
    team.for_each(num_tasks, body);
  });
}

}  // namespace

void bind_threads(nb::module_& m) {
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  m.def("num_threads", &ivl::num_threads);
  m.def("set_num_threads", &ivl::set_num_threads);
  m.def("thread_pool", &ivl::thread_pool);
  m.def("use_openmp", &ivl::use_openmp);
  m.def("tasks_not_run_once", &tasks_not_run_once, Unlocked());
  m.def("fail_in_task", &fail_in_task, nb::arg("num_tasks"), nb::arg("failing"), nb::arg("phases"),
        Unlocked());
  m.def("fail_allocation", &ivl::fail_allocation, nb::arg("after"));
}
