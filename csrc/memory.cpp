#include "memory.hpp"

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
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

uint8_t* allocate(size_t num_bytes) {
  const bool large = num_bytes >= kLargePage;
  const size_t alignment = large ? kLargePage : kLine;
  const size_t rounded = (num_bytes + kLine - 1) / kLine * kLine;
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

void release(uint8_t* data) {
#if defined(_WIN32)
  _aligned_free(data);
#else
  std::free(data);
#endif
}

}  // namespace

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
  if (num_bytes > num_bytes_) *this = Buffer(num_bytes);
}

WeightMemory::WeightMemory(size_t num_bytes) : num_bytes_(num_bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Buffer> begun;
  static size_t used = 0;
  if (num_bytes == 0) return;
  const size_t rounded = (num_bytes + kLine - 1) / kLine * kLine;
  if (rounded > kRegion / 4) {
    region_ = std::make_shared<Buffer>(rounded);
    data_ = region_->data();
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex);
  region_ = begun.lock();
  if (!region_ || kRegion - used < rounded) {
    region_ = std::make_shared<Buffer>(kRegion);
    begun = region_;
    used = 0;
  }
  data_ = region_->data() + used;
  used += rounded;
}

}  // namespace ivl
