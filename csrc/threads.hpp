// The threads that kernels run on.
//
// Two runtimes that each keep a spinning thread for every core fight over the cores, and a kernel
// called between two products of torch loses more than it gains. So kernels run on torch's own
// threads where torch uses GNU's OpenMP (Linux): the library that torch has loaded is asked for
// `GOMP_parallel`, the call that compilers put in the place of `#pragma omp parallel`, whose form
// is part of its stable interface. Elsewhere kernels run on threads of their own, which spin for a
// short while after a call and then sleep.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace ivl {

// How many threads a kernel may use, at least 1.
int num_threads();
void set_num_threads(int count);

// Calls body(task) once for every task of [0, num_tasks), spread over the threads, and returns when
// all calls have. Calls run at the same time and must not throw. Not to be nested.
//
// A thread takes the next task whenever it has finished one, so that one that is disturbed does not
// hold up the others: give each thread several tasks, and let what a task computes depend on its
// number only, which makes results the same for every number of threads.
void parallel_for(int64_t num_tasks, const std::function<void(int64_t)>& body);

// Runs kernels on the threads of the OpenMP library at `path`, which must have been loaded into
// this process already; an empty path goes back to our own. False, and nothing changed, when it is
// not loaded or is not GNU's.
bool use_openmp(const std::string& path);

// "openmp" or "own".
const char* thread_pool();

}  // namespace ivl
