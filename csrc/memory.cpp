#include "memory.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#include "allocate.hpp"
#include "threads.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#if !defined(MADV_POPULATE_WRITE)
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif
#endif
#if defined(_WIN32)
#include <malloc.h>
#endif

namespace ivl {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kLargePage = size_t{2} << 20;
// Of address space; memory is taken as it is written to.
constexpr size_t kRegion = size_t{128} << 20;

// How many calls of `allocate` go well before one fails; negative: all do.
std::atomic<int64_t> allocations_left{-1};

bool is_to_fail() {
  return allocations_left.load(std::memory_order_relaxed) >= 0 && allocations_left.fetch_sub(1) == 0;
}

}  // namespace

uint8_t* allocate(size_t num_bytes) {
  const bool large = num_bytes >= kLargePage;
  const size_t alignment = large ? kLargePage : kLine;
  const size_t rounded = (num_bytes + kLine - 1) / kLine * kLine;
  if (rounded < num_bytes || is_to_fail()) throw std::bad_alloc();
#if defined(_WIN32)
  void* data = _aligned_malloc(rounded, alignment);
#else
  void* data = nullptr;
  if (posix_memalign(&data, alignment, rounded) != 0) data = nullptr;
#endif
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Whole large pages only: the rest would be rounded up to one. A refusal costs speed, no more.
  if (large) madvise(data, rounded / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  return static_cast<uint8_t*>(data);
}

void release(uint8_t* data) noexcept {
#if defined(_WIN32)
  _aligned_free(data);
#else
  std::free(data);
#endif
}

void fail_allocation(int64_t after) { allocations_left = after; }

Buffer::Buffer(size_t num_bytes)
    : data_(num_bytes == 0 ? nullptr : allocate(num_bytes)), num_bytes_(num_bytes) {}

Buffer::~Buffer() { release(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

void Buffer::reserve(size_t num_bytes) {
  if (num_bytes <= num_bytes_) return;
  *this = Buffer();  // first: what is lost anyway need not be there beside the new
  *this = Buffer(num_bytes);
}

namespace {

#if defined(__linux__) && defined(MADV_HUGEPAGE)
const auto kSmallPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));
// A virtual machine has often given its free large pages back to its host, which takes 4 ms to
// return one; one that is there is cleared in 0.3 ms, and as many small ones in 0.8 ms.
constexpr std::chrono::microseconds kSlow{1500};
// Regions that do without after one whose large pages were slow, before the next tries.
constexpr int kPatience = 16;
#endif

}  // namespace

// Memory that weights are cut from. It begins with large pages, and goes on with small ones when
// those turn out to be slow to come.
class WeightRegion {
 public:
  explicit WeightRegion(size_t num_bytes) : buffer_(num_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (buffer_.size() < kLargePage) return;
    // Two regions that are made at once must not both take the last one off: below zero it would
    // never be zero again.
    int patience = patience_.load();
    while (patience > 0 && !patience_.compare_exchange_weak(patience, patience - 1)) {
    }
    if (patience > 0) small_pages_from(0);
#endif
  }

  uint8_t* data() { return buffer_.data(); }

  // Takes the pages of bytes that are about to be written, on all threads. Taken by the first
  // write to each, small pages cost an exception apiece, which is most of the time. Systems that
  // refuse (Linux before 5.14) do just that.
  void take(size_t first, size_t num_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const size_t begin = first / kLargePage, end = (first + num_bytes - 1) / kLargePage + 1;
    parallel_for(static_cast<int64_t>(end - begin), [&](int64_t index) {
      const size_t page = begin + static_cast<size_t>(index);
      const size_t from = std::max(first, page * kLargePage) / kSmallPage * kSmallPage;
      const size_t to = std::min(first + num_bytes, (page + 1) * kLargePage);
      const auto began = std::chrono::steady_clock::now();
      madvise(data() + from, to - from, MADV_POPULATE_WRITE);
      if (is_small_.load() || std::chrono::steady_clock::now() - began < kSlow) return;
      patience_ = kPatience;
      small_pages_from(page + 1);
    });
#else
    (void)first;
    (void)num_bytes;
#endif
  }

 private:
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  void small_pages_from(size_t page) {
    is_small_ = true;
    const size_t start = page * kLargePage, end = buffer_.size() / kLargePage * kLargePage;
    if (start < end) madvise(data() + start, end - start, MADV_NOHUGEPAGE);
  }

  static inline std::atomic<int> patience_{0};
  std::atomic<bool> is_small_{false};
#endif
  Buffer buffer_;
};

WeightMemory::WeightMemory(size_t num_bytes) : num_bytes_(num_bytes) {
  static std::mutex mutex;
  static std::weak_ptr<WeightRegion> begun;
  static size_t used = 0;
  if (num_bytes == 0) return;
  const size_t rounded = (num_bytes + kLine - 1) / kLine * kLine;
  if (rounded > kRegion / 4) {
    region_ = std::make_shared<WeightRegion>(rounded);
    data_ = region_->data();
  } else {
    const std::lock_guard<std::mutex> lock(mutex);
    region_ = begun.lock();
    if (!region_ || kRegion - used < rounded) {
      region_ = std::make_shared<WeightRegion>(kRegion);
      begun = region_;
      used = 0;
    }
    data_ = region_->data() + used;
    used += rounded;
  }
  region_->take(static_cast<size_t>(data_ - region_->data()), rounded);
}

}  // namespace ivl
