// The threads that kernels run on.
#pragma once

#include <cstdint>
#include <functional>

namespace ivl {

// How many threads a kernel may use, at least 1.
int num_threads();
void set_num_threads(int count);

// Calls body(task) once for every task of [0, num_tasks), spread over the threads, and returns when
// all calls have. Calls run at the same time and must not throw. Not to be nested.
void parallel_for(int64_t num_tasks, const std::function<void(int64_t)>& body);

}  // namespace ivl
