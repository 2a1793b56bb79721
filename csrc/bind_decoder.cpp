// The decoder's layers, as ivl.model.cpu_decoder sees them. Weights and the cache are checked and
// held once, when a Decoder or a KVBlocks is made; what comes with every call is checked then.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "decoder.hpp"

namespace nb = nanobind;

namespace {

using ivl::Array;
using ivl::ConstArray;

constexpr int kKVTypes = 3;

// (number of tokens, length of what is known, blocks)
using SegmentArgs = std::tuple<int64_t, int64_t, std::vector<int32_t>>;

// A decoder, and all that its layers point to.
struct HeldDecoder {
  ivl::DecoderShape shape;
  int64_t num_layers;
  std::vector<nb::object> matrices;
  std::vector<ConstArray> arrays;
  ivl::Decoder decoder;
};

// Memory for keys and values of some layers, and how it is divided.
struct KVBlocks {
  ivl::CacheView view;
  int64_t num_blocks, kv_heads, head_dim;
  std::vector<Array> arrays;
};

// Reads the description of layers, and keeps what it names.
class Holder {
 public:
  const float* vector(nb::handle object, const char* name, int64_t size) {
    return ivl::numbers<float>(array(object, name), name, {size});
  }

  // (PackedMatrix or array of plain numbers, bias or None)
  ivl::Linear linear(nb::handle args, const char* name, int64_t rows, int64_t columns) {
    const nb::object weight = item(args, 0, 2, name), bias = item(args, 1, 2, name);
    ivl::Linear linear;
    linear.rows = rows;
    linear.columns = columns;
    if (!bias.is_none()) linear.bias = vector(bias, name, rows);
    if (nb::isinstance<ivl::PackedMatrix>(weight)) {
      linear.packed = nb::cast<const ivl::PackedMatrix*>(weight);
      if (linear.packed->rows() != rows || linear.packed->columns() != columns) {
        ivl::refuse(std::string(name) + ": a matrix (" + std::to_string(rows) + ", " +
                    std::to_string(columns) + ") is wanted");
      }
      matrices.push_back(weight);
      return linear;
    }
    const ConstArray& plain = array(weight, name);
    linear.dtype = ivl::float_dtype(plain, name);
    ivl::check_place(plain, name);
    ivl::check_shape(plain, name, {rows, columns});
    linear.numbers = plain.data();
    return linear;
  }

  // (norm, q, k, v, o, norm, gate, up, down)
  ivl::DecoderLayer layer(nb::handle args, const ivl::DecoderShape& shape) {
    const auto at = [&](size_t i) { return item(args, i, 9, "layers"); };
    const int64_t hidden = shape.hidden, inner = shape.intermediate;
    const int64_t q_width = shape.q_width(), kv_width = shape.kv_width();
    return {vector(at(0), "attn_norm", hidden),       linear(at(1), "q", q_width, hidden),
            linear(at(2), "k", kv_width, hidden),     linear(at(3), "v", kv_width, hidden),
            linear(at(4), "o", hidden, q_width),      vector(at(5), "ffn_norm", hidden),
            linear(at(6), "gate", inner, hidden),     linear(at(7), "up", inner, hidden),
            linear(at(8), "down", hidden, inner)};
  }

  std::vector<nb::object> matrices;
  std::vector<ConstArray> arrays;

 private:
  static nb::object item(nb::handle args, size_t index, size_t count, const char* name) {
    if (!nb::isinstance<nb::tuple>(args) || nb::len(args) != count) {
      ivl::refuse_type(name, "a tuple of " + std::to_string(count), nb::repr(args.type()).c_str());
    }
    return nb::borrow<nb::tuple>(args)[index];
  }

  const ConstArray& array(nb::handle object, const char* name) {
    ConstArray found;
    if (!nb::ndarray_check(object) || !nb::try_cast(object, found)) {
      ivl::refuse_type(name, "an array", nb::repr(object.type()).c_str());
    }
    return arrays.emplace_back(std::move(found));
  }
};

void make_decoder(HeldDecoder* self, int64_t hidden, int64_t heads, int64_t kv_heads,
                  int64_t head_dim, int64_t intermediate, float norm_eps,
                  const nb::list& args, nb::handle norm) {
  for (int64_t size : {hidden, heads, kv_heads, head_dim, intermediate}) {
    // Far above any model, and no product of two of them overflows.
    ivl::require(size >= 1 && size < (int64_t{1} << 24), "a width of the decoder is no such number");
  }
  ivl::require(head_dim % ivl::kScaleGroup == 0, "head_dim: not a multiple of 32");
  ivl::require(heads % kv_heads == 0, "heads: not in equal groups");
  const ivl::DecoderShape shape = {hidden, heads, kv_heads, head_dim, intermediate, norm_eps};
  Holder holder;
  std::vector<ivl::DecoderLayer> layers;
  for (nb::handle layer : args) layers.push_back(holder.layer(layer, shape));
  const float* last = norm.is_none() ? nullptr : holder.vector(norm, "norm", hidden);
  const int64_t count = static_cast<int64_t>(layers.size());
  new (self) HeldDecoder{shape, count, std::move(holder.matrices), std::move(holder.arrays),
                         ivl::Decoder(shape, std::move(layers), last)};
}

void make_blocks(KVBlocks* self, const std::vector<Array>& layers, int type_number,
                 int64_t kv_heads, int64_t head_dim) {
  const auto type = ivl::enum_at<ivl::KVType>(type_number, kKVTypes, "type");
  ivl::require(kv_heads >= 1 && head_dim >= 1 && head_dim % ivl::kScaleGroup == 0,
               "head_dim: not a multiple of 32");
  const int64_t block_bytes = kv_heads * ivl::KVLayout{type, head_dim}.head_bytes();
  KVBlocks made = {{type, {}}, 0, kv_heads, head_dim, layers};
  for (size_t i = 0; i < layers.size(); ++i) {
    if (i == 0 && layers[i].ndim() == 2) made.num_blocks = ivl::size_at(layers[i], 0);
    uint8_t* bytes = ivl::numbers<uint8_t>(layers[i], "layers", {made.num_blocks, block_bytes});
    ivl::require(reinterpret_cast<uintptr_t>(bytes) % 4 == 0, "layers: not aligned to 4 bytes");
    made.view.layers.push_back(bytes);
  }
  new (self) KVBlocks(std::move(made));
}

// Throws unless all that the segments will read and write lies in the cache.
void check_segments(const std::vector<SegmentArgs>& segments, int64_t num_rows,
                    const KVBlocks& cache) {
  int64_t left = num_rows;
  for (const auto& [num_tokens, length, blocks] : segments) {
    const int64_t room = static_cast<int64_t>(blocks.size()) * ivl::kBlockTokens;
    if (num_tokens < 0 || num_tokens > left) {
      ivl::refuse("segments: not as many tokens as there are rows");
    }
    if (length < 0 || length > room - num_tokens) {
      ivl::refuse("segments: " + std::to_string(num_tokens) + " tokens behind " +
                  std::to_string(length) + " have no room in " + std::to_string(blocks.size()) +
                  " blocks");
    }
    left -= num_tokens;
    for (int32_t block : blocks) {
      if (block < 0 || block >= cache.num_blocks) {
        ivl::refuse("segments: there is no block " + std::to_string(block) + " among " +
                    std::to_string(cache.num_blocks));
      }
    }
  }
  if (left != 0) ivl::refuse("segments: not as many tokens as there are rows");
}

void check_cache(const HeldDecoder& self, const KVBlocks& cache) {
  ivl::require(cache.kv_heads == self.shape.kv_heads && cache.head_dim == self.shape.head_dim,
               "cache: made for other heads");
  ivl::require(static_cast<int64_t>(cache.view.layers.size()) >= self.num_layers,
               "cache: has fewer layers than the decoder");
}

std::vector<ivl::Segment> segments_of(const std::vector<SegmentArgs>& args) {
  std::vector<ivl::Segment> segments;
  segments.reserve(args.size());
  for (const auto& [num_tokens, length, blocks] : args) {
    segments.push_back({num_tokens, length, blocks.data()});
  }
  return segments;
}

void extend(HeldDecoder& self, const Array& x, const ConstArray& cos, const ConstArray& sin,
            const std::vector<SegmentArgs>& segments, const KVBlocks& cache) {
  float* hidden = ivl::numbers<float>(x, "x", {ivl::kAny, self.shape.hidden});
  const int64_t num_rows = ivl::size_at(x, 0);
  const float* c = ivl::numbers<float>(cos, "cos", {num_rows, self.shape.head_dim});
  const float* s = ivl::numbers<float>(sin, "sin", {num_rows, self.shape.head_dim});
  check_cache(self, cache);
  check_segments(segments, num_rows, cache);
  const auto sequences = segments_of(segments);
  nb::gil_scoped_release unlocked;
  self.decoder.extend(hidden, num_rows, c, s, sequences, cache.view);
}

void attend(HeldDecoder& self, int64_t layer, const Array& q, const Array& k, const ConstArray& v,
            const ConstArray& cos, const ConstArray& sin, const std::vector<SegmentArgs>& segments,
            const KVBlocks& cache, const Array& out) {
  ivl::require(layer >= 0 && layer < self.num_layers, "layer: the decoder has no such layer");
  const int64_t q_width = self.shape.q_width(), kv_width = self.shape.kv_width();
  float* queries = ivl::numbers<float>(q, "q", {ivl::kAny, q_width});
  const int64_t num_rows = ivl::size_at(q, 0);
  float* keys = ivl::numbers<float>(k, "k", {num_rows, kv_width});
  const float* values = ivl::numbers<float>(v, "v", {num_rows, kv_width});
  const float* c = ivl::numbers<float>(cos, "cos", {num_rows, self.shape.head_dim});
  const float* s = ivl::numbers<float>(sin, "sin", {num_rows, self.shape.head_dim});
  float* to = ivl::numbers<float>(out, "out", {num_rows, q_width});
  check_cache(self, cache);
  check_segments(segments, num_rows, cache);
  const auto sequences = segments_of(segments);
  nb::gil_scoped_release unlocked;
  self.decoder.attend(layer, queries, keys, values, num_rows, c, s, sequences, cache.view, to);
}

}  // namespace

void bind_decoder(nb::module_& m) {
  nb::class_<KVBlocks>(m, "KVBlocks")
      .def("__init__", &make_blocks, nb::arg("layers"), nb::arg("type"), nb::arg("kv_heads"),
           nb::arg("head_dim"));
  nb::class_<HeldDecoder>(m, "Decoder")
      .def("__init__", &make_decoder, nb::arg("hidden"), nb::arg("heads"), nb::arg("kv_heads"),
           nb::arg("head_dim"), nb::arg("intermediate"), nb::arg("norm_eps"), nb::arg("layers"),
           nb::arg("norm").none())
      .def("extend", &extend, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("segments"),
           nb::arg("cache"))
      .def("attend", &attend, nb::arg("layer"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("cos"), nb::arg("sin"), nb::arg("segments"), nb::arg("cache"), nb::arg("out"));
}
