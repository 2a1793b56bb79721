#include "threads.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "memory.hpp"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace ivl {
namespace {

std::atomic<int> count_in_use{1};

// What the threads share during one parallel_for.
struct Work {
  const std::function<void(int64_t)>* body;
  int64_t num_tasks;
  std::atomic<int64_t> next{0};
  FirstError error{};

  void run() noexcept {
    try {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
        (*body)(task);
      }
    } catch (...) {
      error.keep();
      next.store(num_tasks, std::memory_order_relaxed);  // the others take no more
    }
  }
};

void run_work(void* work) { static_cast<Work*>(work)->run(); }

// ---- GNU's OpenMP

using GompParallel = void (*)(void (*)(void*), void*, unsigned num_threads, unsigned flags);
std::atomic<GompParallel> gomp_parallel{nullptr};

// ---- Our own threads

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Turns of a waiting loop before a thread goes to sleep: about 50 us, longer than the gap between
// two kernels of a layer, and shorter than what the next thread on this core would mind.
constexpr int SPINS = 2000;

class Pool {
 public:
  explicit Pool(int num_workers) : wanted_(num_workers) {
    threads_.reserve(static_cast<size_t>(num_workers));
    try {
      for (int i = 0; i < num_workers; ++i) threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
      // The system grants no more threads: those that are there do the work.
    }
  }

  ~Pool() {
    stopping_ = true;
    announce();
    for (std::thread& thread : threads_) thread.join();
  }

  int wanted() const { return wanted_; }

  void run(Work& work) {
    work_ = &work;
    busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    announce();
    work.run();
    // All tasks are taken; those that others took are short, so waiting is spinning.
    for (int turn = 0; busy_.load(std::memory_order_acquire) != 0; ++turn) {
      if (turn < SPINS) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  void announce() {
    round_.fetch_add(1, std::memory_order_seq_cst);
    if (num_asleep_.load(std::memory_order_seq_cst) == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

  void serve() {
    for (uint32_t seen = 0;;) {
      for (int turn = 0; round_.load(std::memory_order_acquire) == seen && turn < SPINS; ++turn) {
        relax();
      }
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        num_asleep_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return round_.load(std::memory_order_seq_cst) != seen; });
        num_asleep_.fetch_sub(1, std::memory_order_relaxed);
      }
      ++seen;  // a new round begins only when every worker has finished this one
      if (stopping_) return;
      work_->run();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int wanted_;
  std::vector<std::thread> threads_;
  std::atomic<uint32_t> round_{0};
  std::atomic<int> busy_{0}, num_asleep_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  Work* work_ = nullptr;
};

std::mutex pool_mutex;  // one parallel_for at a time uses the pool
Pool* pool = nullptr;   // never freed at exit: its threads may outlive what a destructor needs

std::atomic<bool> is_forked{false};

#if !defined(_WIN32)
// A forked child has none of the threads, and perhaps a lock that one of them held: it begins with a
// pool of its own.
void begin_in_child() {
  pool = nullptr;
  new (&pool_mutex) std::mutex;
  gomp_parallel = nullptr;
  is_forked = true;
}
#endif

// To be called before there are threads that a child would miss.
void prepare_for_forks() {
#if !defined(_WIN32)
  static const int registered = pthread_atfork(nullptr, nullptr, begin_in_child);
  (void)registered;
#endif
}

void run_on_pool(Work& work, int num_threads) {
  std::unique_lock<std::mutex> lock(pool_mutex, std::try_to_lock);
  if (!lock.owns_lock()) {  // another thread of the program computes: its threads are taken
    work.run();
    return;
  }
  if (!pool || pool->wanted() != num_threads - 1) {
    prepare_for_forks();
    delete pool;
    pool = nullptr;  // should there be no memory for the next
    pool = new Pool(num_threads - 1);
  }
  pool->run(work);
}

}  // namespace

void FirstError::keep() noexcept {
  if (is_taken_.exchange(true, std::memory_order_relaxed)) return;
  error_ = std::current_exception();
  is_there_.store(true, std::memory_order_release);
}

void FirstError::rethrow() const {
  if (is_there_.load(std::memory_order_acquire)) std::rethrow_exception(error_);
}

int num_threads() { return count_in_use.load(std::memory_order_relaxed); }
void set_num_threads(int count) {
  count_in_use.store(count < 1 ? 1 : count, std::memory_order_relaxed);
}

void parallel_for(int64_t num_tasks, const std::function<void(int64_t)>& body) {
  const int threads = num_threads();
  if (num_tasks <= 1 || threads <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) body(task);
    return;
  }
  Work work{&body, num_tasks};
  if (const GompParallel parallel = gomp_parallel.load(std::memory_order_relaxed)) {
    // Always the whole team: GNU's runtime ends threads that a smaller team does not need.
    parallel(run_work, &work, static_cast<unsigned>(threads), 0);
  } else {
    run_on_pool(work, threads);
  }
  work.error.rethrow();
}

Team::Phase& Team::next_phase() {
  if (phase_ == end_) throw std::logic_error("more phases than were announced");
  return *phase_++;
}

namespace {
// What threads leave a phase by that another has failed in; nobody sees it.
struct Stopped {};
}  // namespace

void Team::wait_for(const Phase& phase, int64_t num_tasks) const {
  for (int turn = 0; phase.done.load(std::memory_order_acquire) < num_tasks; ++turn) {
    if (error_.is_there()) throw Stopped();  // the phase will never end
    if (turn < SPINS) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

void parallel_phases(int64_t num_phases, const std::function<void(Team&)>& body) {
  static thread_local Buffer memory;
  memory.reserve(static_cast<size_t>(num_phases) * sizeof(Team::Phase) + 128);
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(memory.data()) + 127) / 128 * 128;
  Team::Phase* phases = reinterpret_cast<Team::Phase*>(aligned);
  for (int64_t i = 0; i < num_phases; ++i) new (phases + i) Team::Phase{{0}, {0}};
  const int threads = num_threads();
  FirstError error;
  parallel_for(threads, [&](int64_t) {
    Team team(phases, num_phases, threads, error);
    try {
      body(team);
    } catch (...) {
      error.keep();
    }
  });
  error.rethrow();
}

bool use_openmp(const std::string& path) {
  if (path.empty()) {
    gomp_parallel = nullptr;
    return true;
  }
  if (is_forked) return false;
#if defined(_WIN32) || !defined(RTLD_NOLOAD)
  return false;
#else
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return false;
  const auto found = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  dlclose(library);  // only the count: whoever loaded it keeps it
  if (!found) return false;
  prepare_for_forks();
  gomp_parallel = found;
  return true;
#endif
}

const char* thread_pool() { return gomp_parallel.load() ? "openmp" : "own"; }

}  // namespace ivl
