// What Python hands over, checked before a kernel sees it: a kernel that trusted a wrong shape would
// read and write where it must not. Arrays come as anything that knows DLPack or the buffer protocol
// (torch's tensors and the capsules of their `to_dlpack`, which is the quickest; numpy's arrays).
//
// A wrong kind of thing is a TypeError, a wrong shape or number a ValueError; both say what is wrong
// with which argument. An `nb::ndarray` holds what it shows, so the memory is there as long as it is.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>

#include "matmul.hpp"

namespace ivl {

using Array = nanobind::ndarray<>;                    // may be written
using ConstArray = nanobind::ndarray<nanobind::ro>;

[[noreturn]] inline void refuse(const std::string& what) {
  throw nanobind::value_error(what.c_str());
}

inline void require(bool holds, const char* what) {
  if (!holds) refuse(what);
}

// One of the first `count` values of an enumeration.
template <class Enum>
Enum enum_at(int number, int count, const char* name) {
  if (number < 0 || number >= count) {
    refuse(std::string(name) + ": " + std::to_string(number) + " is none of " +
           std::to_string(count));
  }
  return static_cast<Enum>(number);
}

template <class Any>
int64_t size_at(const Any& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

template <class Any>
std::string shape_text(const Any& array) {
  std::string text = "(";
  for (size_t i = 0; i < array.ndim(); ++i) {
    text += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + ")";
}

inline std::string dtype_text(nanobind::dlpack::dtype dtype) {
  constexpr const char* kNames[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  const std::string name = dtype.code < 7 ? kNames[dtype.code] : "unknown";
  return name + std::to_string(dtype.bits);
}

[[noreturn]] inline void refuse_type(const char* name, const std::string& wanted,
                                     const std::string& given) {
  throw nanobind::type_error((std::string(name) + ": " + wanted + " is wanted, not " + given).c_str());
}

// In this processor's memory, and without gaps, the last axis first.
template <class Any>
void check_place(const Any& array, const char* name) {
  if (array.device_type() != nanobind::device::cpu::value) {
    refuse_type(name, "an array on the CPU", "one on another device");
  }
  int64_t apart = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    const int64_t size = size_at(array, i);
    if (array.size() != 0 && size != 1 && array.stride(i) != apart) {
      refuse(std::string(name) + ": an array without gaps is wanted (contiguous)");
    }
    apart *= size;
  }
}

constexpr int64_t kAny = -1;  // of a shape: as long as it is

template <class Any>
void check_shape(const Any& array, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = array.ndim() == shape.size();
  size_t axis = 0;
  for (int64_t size : shape) {
    fits = fits && (size == kAny || size_at(array, axis) == size);
    ++axis;
  }
  if (fits) return;
  std::string wanted = "(";
  axis = 0;
  for (int64_t size : shape) {
    wanted += (axis++ ? ", " : "") + (size == kAny ? std::string("any") : std::to_string(size));
  }
  refuse(std::string(name) + ": the shape " + wanted + ") is wanted, not " + shape_text(array));
}

// The numbers of an array of the type T and of this shape; for a `ConstArray` they are const.
template <class T, class Any>
auto numbers(const Any& array, const char* name, std::initializer_list<int64_t> shape) {
  if (array.dtype() != nanobind::dtype<T>()) {
    refuse_type(name, dtype_text(nanobind::dtype<T>()), dtype_text(array.dtype()));
  }
  check_place(array, name);
  check_shape(array, name, shape);
  if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0 && array.size() != 0) {
    refuse(std::string(name) + ": the memory is not aligned to its numbers");
  }
  using Number = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(array.data())>>,
                                    const T, T>;
  return static_cast<Number*>(array.data());
}

// The same for what may be None.
template <class T, class Any>
auto numbers_or_null(const std::optional<Any>& array, const char* name,
                     std::initializer_list<int64_t> shape) {
  return array ? numbers<T>(*array, name, shape) : nullptr;
}

// float32, float16 or bfloat16.
template <class Any>
Dtype float_dtype(const Any& array, const char* name) {
  const nanobind::dlpack::dtype dtype = array.dtype();
  const auto is = [&](nanobind::dlpack::dtype_code code, int bits) {
    return dtype.code == static_cast<uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(nanobind::dlpack::dtype_code::Float, 32)) return Dtype::float32;
  if (is(nanobind::dlpack::dtype_code::Float, 16)) return Dtype::float16;
  if (is(nanobind::dlpack::dtype_code::Bfloat, 16)) return Dtype::bfloat16;
  refuse_type(name, "float32, float16 or bfloat16", dtype_text(dtype));
}

// Rows of an array (..., columns): of x (..., columns) -> out (..., rows) there are as many.
template <class Any>
int64_t rows_of(const Any& array, const char* name, int64_t columns) {
  check_place(array, name);
  const size_t last = array.ndim() == 0 ? 0 : array.ndim() - 1;
  if (array.ndim() == 0 || size_at(array, last) != columns) {
    refuse(std::string(name) + ": the shape (..., " + std::to_string(columns) +
           ") is wanted, not " + shape_text(array));
  }
  int64_t rows = 1;
  for (size_t i = 0; i < last; ++i) rows *= size_at(array, i);
  return rows;
}

}  // namespace ivl
