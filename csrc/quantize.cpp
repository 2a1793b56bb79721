// Binds the codecs of csrc/variant/quantize.cpp: `quantize` and `dequantize` of ivl.kernels.codec.
#include "quantize.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <atomic>
#include <optional>

#include "isa.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace ivl {
namespace {

using Weights = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using NewWeights = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Blocks = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using NewBlocks = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// What one task of a thread takes: a fraction of a millisecond, and whole vectors of blocks.
constexpr int64_t kTaskWeights = 1 << 16;

const Codec* codec_of(int type_id) {
  switch (current_isa()) {
#if defined(IVL_HAS_NEON)
    case Isa::neon: return neon::find_codec(type_id);
#endif
#if defined(IVL_HAS_AVX2)
    case Isa::avx2: return avx2::find_codec(type_id);
#endif
#if defined(IVL_HAS_AVX512)
    case Isa::avx512: return avx512::find_codec(type_id);
#endif
    default: return portable::find_codec(type_id);
  }
}

void check(bool fits) {
  if (!fits) throw nb::value_error("the arrays are not as many blocks of the format");
}

template <typename Body>
void over_blocks(const Codec& codec, int64_t count, Body body) {
  const int64_t step = std::max<int64_t>(1, kTaskWeights / codec.block_size);
  parallel_for((count + step - 1) / step, [&](int64_t task) {
    body(task * step, std::min(step, count - task * step));
  });
}

int quantize(int type_id, Weights weights, std::optional<Weights> importance, float limit,
             NewBlocks out) {
  const Codec* codec = codec_of(type_id);
  const int64_t count = static_cast<int64_t>(weights.shape(0));
  check(codec && codec->encode);
  check(static_cast<int>(weights.shape(1)) == codec->block_size && out.shape(0) == weights.shape(0));
  check(static_cast<int>(out.shape(1)) == codec->block_bytes);
  check(!importance || (importance->shape(1) == weights.shape(1) && importance->shape(0) > 0));
  EncodeTask all = {weights.data(), importance ? importance->data() : nullptr,
                    importance ? static_cast<int64_t>(importance->shape(0)) : 1,
                    0, count, limit, out.data()};
  std::atomic<int> flags{0};
  nb::gil_scoped_release release;
  over_blocks(*codec, count, [&](int64_t first, int64_t some) {
    EncodeTask part = all;
    part.first = first;
    part.count = some;
    flags.fetch_or(codec->encode(part), std::memory_order_relaxed);
  });
  return flags.load();
}

void dequantize(int type_id, Blocks blocks, NewWeights out) {
  const Codec* codec = codec_of(type_id);
  const int64_t count = static_cast<int64_t>(blocks.shape(0));
  check(codec);
  check(static_cast<int>(blocks.shape(1)) == codec->block_bytes && out.shape(0) == blocks.shape(0));
  check(static_cast<int>(out.shape(1)) == codec->block_size);
  const uint8_t* from = blocks.data();
  float* to = out.data();
  nb::gil_scoped_release release;
  over_blocks(*codec, count, [&](int64_t first, int64_t some) {
    codec->decode(from + first * codec->block_bytes, some, to + first * codec->block_size);
  });
}

}  // namespace
}  // namespace ivl

void bind_quantize(nb::module_& m) {
  m.attr("OUT_OF_RANGE") = static_cast<int>(ivl::kOutOfRange);
  m.attr("NOT_FINITE") = static_cast<int>(ivl::kNotFinite);
  m.def("quantize", &ivl::quantize, nb::arg("type_id"), nb::arg("weights"),
        nb::arg("importance").none(), nb::arg("limit"), nb::arg("out"));
  m.def("dequantize", &ivl::dequantize, nb::arg("type_id"), nb::arg("blocks"), nb::arg("out"));
}
