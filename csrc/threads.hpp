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
#include <exception>
#include <functional>
#include <string>

namespace ivl {

// How many threads a kernel may use, at least 1. It may be set while kernels run, which go on with
// the number that they began with: whoever divides work by it asks once.
int num_threads();
void set_num_threads(int count);

// The first exception among threads that compute together. It must not leave a thread of the pool,
// nor a region of OpenMP: either would end the process. So it is kept, and the caller throws it.
class FirstError {
 public:
  // Within a catch: keeps what was caught, unless there is something already.
  void keep() noexcept;
  // Whether there is something, for threads that would wait for one that has failed.
  bool is_there() const noexcept { return is_there_.load(std::memory_order_relaxed); }
  // Throws it again, if there is something; when all other threads have ended.
  void rethrow() const;

 private:
  std::atomic<bool> is_taken_{false}, is_there_{false};
  std::exception_ptr error_;
};

// Calls body(task) once for every task of [0, num_tasks), spread over the threads, and returns when
// all calls have. Calls run at the same time. When one throws, no more tasks are begun, and its
// exception is thrown here; the threads are as good as before. Not to be nested.
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

  Team(Phase* phases, int64_t num_phases, int num_threads, FirstError& error)
      : phase_(phases), end_(phases + num_phases), num_threads_(num_threads), error_(error) {}

  // The same on every thread of the team and in every phase, whatever is set in the meantime.
  int num_threads() const { return num_threads_; }

  // Calls body(task) once for every task of [0, num_tasks) on some thread of the team, and returns
  // when all calls have. When one throws, this throws on every thread that needs the phase.
  template <class Body>
  void for_each(int64_t num_tasks, Body&& body) {
    Phase& phase = next_phase();
    for (int64_t task; (task = phase.next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
      try {
        body(task);
      } catch (...) {
        error_.keep();
        phase.next.store(num_tasks, std::memory_order_relaxed);  // the others take no more
        throw;
      }
      phase.done.fetch_add(1, std::memory_order_release);
    }
    wait_for(phase, num_tasks);
  }

 private:
  Phase& next_phase();
  void wait_for(const Phase& phase, int64_t num_tasks) const;

  Phase* phase_;
  Phase* end_;
  int num_threads_;
  FirstError& error_;
};

// Calls body(team) on every thread, for at most `num_phases` phases. The first exception that a body
// throws is thrown here, and the others stop. Not to be nested.
void parallel_phases(int64_t num_phases, const std::function<void(Team&)>& body);

// Runs kernels on the threads of the OpenMP library at `path`, which must have been loaded into
// this process already; an empty path goes back to our own. False, and nothing changed, when it is
// not loaded or is not GNU's, and in a process that was forked: GNU's runtime would wait there for
// threads that only the parent has, so such a process goes on with threads of its own.
bool use_openmp(const std::string& path);

// "openmp" or "own".
const char* thread_pool();

}  // namespace ivl
