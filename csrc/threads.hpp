// The threads that kernels run on.
//
// Two runtimes that each keep a spinning thread for every core fight over the cores, and a kernel
// called between two products of torch loses more than it gains. So kernels run on torch's own
// threads where torch uses GNU's OpenMP (Linux): the library that torch has loaded is asked for
// `GOMP_parallel`, the call that compilers put in the place of `#pragma omp parallel`, whose form
// is part of its stable interface. Elsewhere kernels run on threads of their own, which spin for a
// short while after a call and then sleep.
#pragma once

#include <atomic>
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

// Work in phases, each of which needs what the one before it computed, on one set of threads: a
// decoder's layers. Starting threads for every phase would cost more than some phases take.
//
// Every thread calls `for_each` for the same phases in the same order. A phase has ended when its
// tasks have, whoever ran them: a thread that comes late, or never, holds nobody up.
class Team {
 public:
  // The counters of one phase, each on cache lines of its own.
  struct Phase {
    alignas(128) std::atomic<int64_t> next;
    alignas(128) std::atomic<int64_t> done;
  };

  Team(Phase* phases, int64_t num_phases) : phase_(phases), end_(phases + num_phases) {}

  // Calls body(task) once for every task of [0, num_tasks) on some thread of the team, and returns
  // when all calls have. Calls must not throw.
  template <class Body>
  void for_each(int64_t num_tasks, Body&& body) {
    Phase& phase = next_phase();
    for (int64_t task; (task = phase.next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
      body(task);
      phase.done.fetch_add(1, std::memory_order_release);
    }
    wait_for(phase, num_tasks);
  }

 private:
  Phase& next_phase();
  static void wait_for(const Phase& phase, int64_t num_tasks);

  Phase* phase_;
  Phase* end_;
};

// Calls body(team) on every thread, for at most `num_phases` phases. Not to be nested.
void parallel_phases(int64_t num_phases, const std::function<void(Team&)>& body);

// Runs kernels on the threads of the OpenMP library at `path`, which must have been loaded into
// this process already; an empty path goes back to our own. False, and nothing changed, when it is
// not loaded or is not GNU's.
bool use_openmp(const std::string& path);

// "openmp" or "own".
const char* thread_pool();

}  // namespace ivl
