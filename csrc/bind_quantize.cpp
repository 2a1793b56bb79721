// Binds the codecs of csrc/quantize.hpp: `quantize` and `dequantize` of ivl.kernels.codec.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "arguments.hpp"
#include "quantize.hpp"

namespace nb = nanobind;

namespace {

using ivl::Array;
using ivl::ConstArray;

int quantize(int type_id, const ConstArray& weights, const std::optional<ConstArray>& importance,
             float limit, const Array& out) {
  const ivl::Codec* codec = ivl::codec_of(type_id);
  ivl::require(codec && codec->encode, "type_id: no format that is written");
  const float* from = ivl::numbers<float>(weights, "weights", {ivl::kAny, codec->block_size});
  const int64_t count = ivl::size_at(weights, 0);
  const float* share =
      ivl::numbers_or_null<float>(importance, "importance", {ivl::kAny, codec->block_size});
  const int64_t period = importance ? ivl::size_at(*importance, 0) : 1;
  ivl::require(period > 0, "importance: there is none");
  uint8_t* blocks = ivl::numbers<uint8_t>(out, "out", {count, codec->block_bytes});
  nb::gil_scoped_release unlocked;
  return ivl::encode_blocks(*codec, {from, share, period, 0, count, limit, blocks});
}

void dequantize(int type_id, const ConstArray& blocks, const Array& out) {
  const ivl::Codec* codec = ivl::codec_of(type_id);
  ivl::require(codec, "type_id: no format that is read");
  const uint8_t* from = ivl::numbers<uint8_t>(blocks, "blocks", {ivl::kAny, codec->block_bytes});
  const int64_t count = ivl::size_at(blocks, 0);
  float* to = ivl::numbers<float>(out, "out", {count, codec->block_size});
  nb::gil_scoped_release unlocked;
  ivl::decode_blocks(*codec, from, count, to);
}

}  // namespace

void bind_quantize(nb::module_& m) {
  m.attr("OUT_OF_RANGE") = static_cast<int>(ivl::kOutOfRange);
  m.attr("NOT_FINITE") = static_cast<int>(ivl::kNotFinite);
  m.def("quantize", &quantize, nb::arg("type_id"), nb::arg("weights"),
        nb::arg("importance").none(), nb::arg("limit"), nb::arg("out"));
  m.def("dequantize", &dequantize, nb::arg("type_id"), nb::arg("blocks"), nb::arg("out"));
}
