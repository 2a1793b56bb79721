#include "decoder.hpp"

#include <algorithm>
#include <cmath>

#include "isa.hpp"

namespace ivl {
namespace {

// Segments of so few tokens are limited by reading the cache: their keys are divided among threads.
constexpr int64_t kFewTokens = 8;
constexpr int64_t kPartKeys = 512;
// Rows, pairs of a token and a head, of one task of a long segment: they stay in a cache.
constexpr int64_t kTaskRows = 128;
// Outputs of one task of a product, at most: for few rows and for many.
constexpr int64_t kFewOutputs = 256, kManyOutputs = 128;
constexpr int64_t kLeastOutputs = 32;  // weights of so many rows begin at a panel of any kind
constexpr int64_t kStoreRows = 4;
constexpr int64_t kPhasesPerLayer = 10;

const AttentionKernels& attention() { return kernels().attention; }
const PointwiseKernels& pointwise() { return kernels().pointwise; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

float* floats(Buffer& buffer, int64_t count) {
  buffer.reserve(static_cast<size_t>(4 * count));
  return buffer.as<float>();
}

// Products that share their inputs.
struct Part {
  const Linear* layer;
  float* out;
  bool add;
};

void multiply_parts(Team& team, const Part* parts, int count, const Inputs& x) {
  int64_t tasks = 0;
  const auto tasks_of = [&](const Part& part) {
    return OutputTasks(part.layer->rows, x.num_rows(), team.num_threads());
  };
  for (int i = 0; i < count; ++i) tasks += tasks_of(parts[i]).count();
  team.for_each(tasks, [&](int64_t task) {
    const Part* part = parts;
    OutputTasks of_part = tasks_of(*part);
    while (task >= of_part.count()) {
      task -= of_part.count();
      of_part = tasks_of(*++part);
    }
    const auto [first, last] = of_part.range(task);
    multiply_outputs(*part->layer, x, first, last, part->out + first, part->layer->rows,
                     part->add);
  });
}

}  // namespace

OutputTasks::OutputTasks(int64_t outputs, int64_t num_rows, int num_threads) : outputs_(outputs) {
  const auto rounded = [](int64_t n) { return n / kLeastOutputs * kLeastOutputs; };
  const int64_t most = num_rows <= Inputs::kTileRows ? kFewOutputs : kManyOutputs;
  large_ = std::clamp(rounded(outputs / (8 * num_threads)), 2 * kLeastOutputs, most);
  small_ = std::max(kLeastOutputs, rounded(large_ / 4));
  num_large_ = outputs * 3 / 4 / large_;
}

int64_t OutputTasks::count() const {
  return num_large_ + divide_up(outputs_ - num_large_ * large_, small_);
}

std::pair<int64_t, int64_t> OutputTasks::range(int64_t task) const {
  if (task < num_large_) return {task * large_, (task + 1) * large_};
  const int64_t first = num_large_ * large_ + (task - num_large_) * small_;
  return {first, std::min(first + small_, outputs_)};
}

Decoder::Decoder(const DecoderShape& shape, std::vector<DecoderLayer> layers, const float* norm)
    : shape_(shape), layers_(std::move(layers)), norm_(norm) {
  for (const DecoderLayer& layer : layers_) {
    for (const Linear* one : {&layer.q, &layer.k, &layer.v}) attn_in_.add_reader(*one);
    o_in_.add_reader(layer.o);
    for (const Linear* one : {&layer.gate, &layer.up}) ffn_in_.add_reader(*one);
    down_in_.add_reader(layer.down);
  }
}

void Decoder::plan(int64_t num_rows, const std::vector<Segment>& segments, bool of_prompt) {
  num_rows_ = num_rows;
  segment_of_.resize(num_rows);
  position_of_.resize(num_rows);
  num_parts_of_.resize(num_rows);
  attention_.clear();
  max_parts_ = 1;
  int64_t row = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const int64_t end = segment.length + segment.num_tokens;
    // Sums over parts come out otherwise than over all keys, and a prompt may be cut anywhere.
    const bool few = segment.num_tokens <= kFewTokens && !of_prompt;
    const int64_t parts = few ? std::max<int64_t>(1, divide_up(end, kPartKeys)) : 1;
    const int64_t tokens = few ? segment.num_tokens
                               : std::max<int64_t>(1, kTaskRows / shape_.group());
    for (int64_t t = 0; t < segment.num_tokens; ++t) {
      segment_of_[row + t] = &segment;
      position_of_[row + t] = segment.length + t;
      num_parts_of_[row + t] = parts;
    }
    // The last tokens see the most keys: whoever takes the longest task should take it first.
    for (int64_t t = segment.num_tokens == 0 ? -1 : (segment.num_tokens - 1) / tokens * tokens;
         t >= 0; t -= tokens) {
      const int64_t count = std::min(tokens, segment.num_tokens - t);
      const int64_t last = segment.length + t + count;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = part * kPartKeys;
        attention_.push_back({static_cast<int64_t>(i), row + t, count, part, few ? first : 0,
                              few ? std::min(first + kPartKeys, last) : last});
      }
    }
    max_parts_ = std::max(max_parts_, parts);
    row += segment.num_tokens;
  }
  if (max_parts_ > 1) {
    floats(parts_, max_parts_ * num_rows * shape_.q_width());
    floats(states_, max_parts_ * num_rows * shape_.heads * 2);
  }
}

void Decoder::store_tokens(uint8_t* layer, const Rows& rows, const KVLayout& layout, int64_t first,
                           int64_t last, int64_t head) {
  const int64_t dim = shape_.head_dim, group = shape_.group();
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int64_t row = first; row < last; ++row) {
    const float *cos = rows.cos + row * dim, *sin = rows.sin + row * dim;
    float* q = rows.q + row * shape_.q_width() + head * group * dim;
    for (int64_t i = 0; i < group; ++i) attention().rotate(q + i * dim, cos, sin, dim, scale);
    float* k = rows.k + row * shape_.kv_width() + head * dim;
    attention().rotate(k, cos, sin, dim, 1.0f);
    const int64_t position = position_of_[row];
    const int64_t block = segment_of_[row]->blocks[position / kBlockTokens];
    uint8_t* place = layer + (block * shape_.kv_heads + head) * layout.head_bytes();
    attention().store(layout, place, position % kBlockTokens, k,
                      rows.v + row * shape_.kv_width() + head * dim);
  }
}

void Decoder::attend_part(uint8_t* layer, const Rows& rows, const KVLayout& layout,
                          const Attention& part, int64_t head) {
  static thread_local Buffer scratch;
  const AttentionKernels& of_isa = attention();
  const int64_t group = shape_.group(), dim = shape_.head_dim, q_width = shape_.q_width();
  scratch.reserve(static_cast<size_t>(of_isa.scratch_bytes(part.num_tokens * group, dim)));
  const bool whole = num_parts_of_[part.row] == 1;
  const int64_t at = part.row * q_width + head * group * dim;
  // States of one part and head: its tokens one after another, the heads of each side by side.
  float* state = states_.as<float>() +
                 2 * ((part.part * shape_.kv_heads + head) * num_rows_ + part.row) * group;
  of_isa.attend(
      {rows.q + at, q_width, part.num_tokens, group, position_of_[part.row], layout, layer,
       shape_.kv_heads * layout.head_bytes(), head * layout.head_bytes(),
       segment_of_[part.row]->blocks, part.first_key, part.last_key,
       whole ? rows.out + at : parts_.as<float>() + part.part * num_rows_ * q_width + at, q_width,
       whole ? nullptr : state},
      scratch.data());
}

void Decoder::combine_row(const Rows& rows, int64_t row) {
  if (num_parts_of_[row] == 1) return;
  const int64_t group = shape_.group(), dim = shape_.head_dim, q_width = shape_.q_width();
  for (int64_t head = 0; head < shape_.heads; ++head) {
    const int64_t at = row * q_width + head * dim;
    const int64_t state = 2 * ((head / group * num_rows_ + row) * group + head % group);
    attention().combine(parts_.as<float>() + at, num_rows_ * q_width,
                        states_.as<float>() + state, 2 * shape_.heads * num_rows_,
                        num_parts_of_[row], dim, rows.out + at);
  }
}

void Decoder::attend_phases(Team& team, uint8_t* layer, const Rows& rows, KVType type) {
  const KVLayout layout = {type, shape_.head_dim};
  const int64_t heads = shape_.kv_heads;
  team.for_each(divide_up(num_rows_, kStoreRows) * heads, [&](int64_t task) {
    const int64_t first = task / heads * kStoreRows;
    store_tokens(layer, rows, layout, first, std::min(first + kStoreRows, num_rows_), task % heads);
  });
  const int64_t count = static_cast<int64_t>(attention_.size());
  team.for_each(count * heads, [&](int64_t task) {
    attend_part(layer, rows, layout, attention_[static_cast<size_t>(task / heads)], task % heads);
  });
}

void Decoder::norm_tile(const float* x, const float* weight, int64_t tile, Inputs& to) {
  const int64_t width = shape_.hidden, first = tile * Inputs::kTileRows;
  for (int64_t row = first; row < std::min(first + Inputs::kTileRows, num_rows_); ++row) {
    pointwise().rms_norm(x + row * width, weight, shape_.norm_eps, width,
                         normed_.as<float>() + row * width);
  }
  to.fill(normed_.as<float>(), tile);
}

void Decoder::ffn_part(const DecoderLayer& layer, int64_t first, int64_t last) {
  static thread_local Buffer scratch;
  const int64_t width = shape_.intermediate, count = last - first;
  float* up = floats(scratch, 2 * num_rows_ * count);
  float* gate = up + num_rows_ * count;
  multiply_outputs(layer.gate, ffn_in_, first, last, gate, count);
  multiply_outputs(layer.up, ffn_in_, first, last, up, count);
  pointwise().swiglu(gate, up, num_rows_, count, count);
  down_in_.fill_columns(gate, count, first, count);
  if (down_in_.needs_rows()) {
    for (int64_t row = 0; row < num_rows_; ++row) {
      std::copy_n(gate + row * count, count, hidden_.as<float>() + row * width + first);
    }
  }
}

void Decoder::run_layer(Team& team, const DecoderLayer& layer, uint8_t* cache, KVType type,
                        float* x, const Rows& rows) {
  const int64_t tiles = attn_in_.num_tiles();
  team.for_each(tiles, [&](int64_t tile) { norm_tile(x, layer.attn_norm, tile, attn_in_); });
  const Part qkv[] = {{&layer.q, rows.q, false},
                      {&layer.k, rows.k, false},
                      {&layer.v, v_.as<float>(), false}};
  multiply_parts(team, qkv, 3, attn_in_);
  attend_phases(team, cache, rows, type);
  team.for_each(tiles, [&](int64_t tile) {
    const int64_t first = tile * Inputs::kTileRows;
    for (int64_t row = first; row < std::min(first + Inputs::kTileRows, num_rows_); ++row) {
      combine_row(rows, row);
    }
    o_in_.fill(rows.out, tile);
  });
  const Part o = {&layer.o, x, true};
  multiply_parts(team, &o, 1, o_in_);
  team.for_each(tiles, [&](int64_t tile) { norm_tile(x, layer.ffn_norm, tile, ffn_in_); });
  const OutputTasks ffn(shape_.intermediate, num_rows_, team.num_threads());
  team.for_each(ffn.count(), [&](int64_t task) {
    const auto [first, last] = ffn.range(task);
    ffn_part(layer, first, last);
  });
  if (down_in_.needs_rows()) {
    team.for_each(tiles, [&](int64_t tile) { down_in_.fill_rows(hidden_.as<float>(), tile); });
  }
  const Part down = {&layer.down, x, true};
  multiply_parts(team, &down, 1, down_in_);
}

void Decoder::extend(float* x, int64_t num_rows, const float* cos, const float* sin,
                     const std::vector<Segment>& segments, const CacheView& cache,
                     bool of_prompt) {
  if (num_rows == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  plan(num_rows, segments, of_prompt);
  for (Inputs* inputs : {&attn_in_, &ffn_in_}) inputs->resize(num_rows, shape_.hidden, of_prompt);
  o_in_.resize(num_rows, shape_.q_width(), of_prompt);
  down_in_.resize(num_rows, shape_.intermediate, of_prompt);
  floats(normed_, num_rows * shape_.hidden);
  if (down_in_.needs_rows()) floats(hidden_, num_rows * shape_.intermediate);
  const Rows rows = {floats(q_, num_rows * shape_.q_width()),
                     floats(k_, num_rows * shape_.kv_width()),
                     floats(v_, num_rows * shape_.kv_width()), cos, sin,
                     floats(attended_, num_rows * shape_.q_width())};
  const int64_t count = static_cast<int64_t>(layers_.size());
  parallel_phases(count * kPhasesPerLayer + 1, [&](Team& team) {
    for (int64_t i = 0; i < count; ++i) {
      const size_t at = static_cast<size_t>(i);
      run_layer(team, layers_[at], cache.layers[at], cache.type, x, rows);
    }
    if (norm_ == nullptr) return;
    team.for_each(divide_up(num_rows, kStoreRows), [&](int64_t task) {
      const int64_t first = task * kStoreRows, width = shape_.hidden;
      for (int64_t row = first; row < std::min(first + kStoreRows, num_rows); ++row) {
        pointwise().rms_norm(x + row * width, norm_, shape_.norm_eps, width, x + row * width);
      }
    });
  });
}

void Decoder::attend(int64_t layer, float* q, float* k, const float* v, int64_t num_rows,
                     const float* cos, const float* sin, const std::vector<Segment>& segments,
                     const CacheView& cache, bool of_prompt, float* out) {
  if (num_rows == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  plan(num_rows, segments, of_prompt);
  const Rows rows = {q, k, v, cos, sin, out};
  parallel_phases(3, [&](Team& team) {
    attend_phases(team, cache.layers[static_cast<size_t>(layer)], rows, cache.type);
    team.for_each(num_rows, [&](int64_t row) { combine_row(rows, row); });
  });
}

}  // namespace ivl
