// The decoder's layers, as ivl.model.cpu_decoder sees them. Arrays come as addresses; whoever makes
// a Decoder keeps its weights alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "decoder.hpp"

namespace nb = nanobind;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (packed matrix or None, address of plain numbers, their dtype, rows, columns, address of a bias)
using LinearArgs = std::tuple<nb::object, uintptr_t, int, int64_t, int64_t, uintptr_t>;
// (address of the norm, q, k, v, o, address of the norm, gate, up, down)
using LayerArgs = std::tuple<uintptr_t, LinearArgs, LinearArgs, LinearArgs, LinearArgs, uintptr_t,
                             LinearArgs, LinearArgs, LinearArgs>;
// (number of tokens, length of what is known, address of int32 blocks)
using SegmentArgs = std::tuple<int64_t, int64_t, uintptr_t>;

ivl::Linear linear_of(const LinearArgs& args) {
  const auto& [packed, numbers, dtype, rows, columns, bias] = args;
  ivl::Linear linear;
  if (!packed.is_none()) linear.packed = nb::cast<const ivl::PackedMatrix*>(packed);
  linear.numbers = at<void>(numbers);
  linear.dtype = static_cast<ivl::Dtype>(dtype);
  linear.rows = rows;
  linear.columns = columns;
  linear.bias = at<float>(bias);
  return linear;
}

void make(ivl::Decoder* self, int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim,
          int64_t intermediate, float norm_eps, const std::vector<LayerArgs>& args,
          uintptr_t norm) {
  std::vector<ivl::DecoderLayer> layers;
  for (const LayerArgs& a : args) {
    layers.push_back({at<float>(std::get<0>(a)), linear_of(std::get<1>(a)),
                      linear_of(std::get<2>(a)), linear_of(std::get<3>(a)),
                      linear_of(std::get<4>(a)), at<float>(std::get<5>(a)),
                      linear_of(std::get<6>(a)), linear_of(std::get<7>(a)),
                      linear_of(std::get<8>(a))});
  }
  new (self) ivl::Decoder({hidden, heads, kv_heads, head_dim, intermediate, norm_eps},
                          std::move(layers), at<float>(norm));
}

std::vector<ivl::Segment> segments_of(const std::vector<SegmentArgs>& args) {
  std::vector<ivl::Segment> segments;
  for (const auto& [num_tokens, length, blocks] : args) {
    segments.push_back({num_tokens, length, at<int32_t>(blocks)});
  }
  return segments;
}

ivl::CacheView cache_of(int type, const std::vector<uintptr_t>& layers) {
  ivl::CacheView cache = {static_cast<ivl::KVType>(type), {}};
  for (uintptr_t layer : layers) cache.layers.push_back(at<uint8_t>(layer));
  return cache;
}

void extend(ivl::Decoder& self, uintptr_t x, int64_t num_rows, uintptr_t cos, uintptr_t sin,
            const std::vector<SegmentArgs>& segments, int type,
            const std::vector<uintptr_t>& layers) {
  const auto sequences = segments_of(segments);
  const auto cache = cache_of(type, layers);
  nb::gil_scoped_release unlocked;
  self.extend(at<float>(x), num_rows, at<float>(cos), at<float>(sin), sequences, cache);
}

void attend(ivl::Decoder& self, int64_t layer, uintptr_t q, uintptr_t k, uintptr_t v,
            int64_t num_rows, uintptr_t cos, uintptr_t sin,
            const std::vector<SegmentArgs>& segments, int type,
            const std::vector<uintptr_t>& layers, uintptr_t out) {
  const auto sequences = segments_of(segments);
  const auto cache = cache_of(type, layers);
  nb::gil_scoped_release unlocked;
  self.attend(layer, at<float>(q), at<float>(k), at<float>(v), num_rows, at<float>(cos),
              at<float>(sin), sequences, cache, at<float>(out));
}

}  // namespace

void bind_decoder(nb::module_& m) {
  nb::class_<ivl::Decoder>(m, "Decoder")
      .def("__init__", &make)
      .def("extend", &extend)
      .def("attend", &attend);
  m.def("kv_head_bytes", [](int type, int64_t head_dim) {
    return ivl::KVLayout{static_cast<ivl::KVType>(type), head_dim}.head_bytes();
  });
}
