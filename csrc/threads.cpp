#include "threads.hpp"

namespace ivl {
namespace {
int count_in_use = 1;
}

int num_threads() { return count_in_use; }
void set_num_threads(int count) { count_in_use = count < 1 ? 1 : count; }

void parallel_for(int64_t num_tasks, const std::function<void(int64_t)>& body) {
  for (int64_t task = 0; task < num_tasks; ++task) body(task);
}

}  // namespace ivl
