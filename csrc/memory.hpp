// Memory for weights and activations: aligned to cache lines, on large pages where that pays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ivl {

// Owns uninitialised bytes that begin on a cache line. Buffers of several megabytes ask the system
// for pages of 2 MB: streaming weights from memory spends less on page tables then.
class Buffer {
 public:
  Buffer() = default;
  // Throws std::bad_alloc.
  explicit Buffer(size_t num_bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Makes room for at least `num_bytes`; what was there is lost if it has to grow. Empty when it
  // throws std::bad_alloc.
  void reserve(size_t num_bytes);

  size_t size() const { return num_bytes_; }
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  template <class T>
  T* as() { return reinterpret_cast<T*>(data_); }
  template <class T>
  const T* as() const { return reinterpret_cast<const T*>(data_); }

 private:
  uint8_t* data_ = nullptr;
  size_t num_bytes_ = 0;
};

class WeightRegion;

// Uninitialised bytes for weights, which live as long as their model. They are cut one after the
// other from regions that lie on pages of 2 MB altogether, where the system has such pages at hand:
// with memory of its own, the end of every matrix would lie on small ones. A region is given back
// when nothing of it is used any more. May be made from several threads, not from `parallel_for`.
class WeightMemory {
 public:
  WeightMemory() = default;
  // Throws std::bad_alloc.
  explicit WeightMemory(size_t num_bytes);

  size_t size() const { return num_bytes_; }
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }

 private:
  std::shared_ptr<WeightRegion> region_;
  uint8_t* data_ = nullptr;
  size_t num_bytes_ = 0;
};

}  // namespace ivl
