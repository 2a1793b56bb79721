// The layers of a decoder (Qwen2, InternLM2, Llama) on a CPU: one call for all of them, which reads
// tokens of several sequences at once. docs/kernels.md tells how the work is divided.
#pragma once

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "kv_layout.hpp"
#include "linear.hpp"
#include "threads.hpp"

namespace ivl {

struct DecoderShape {
  int64_t hidden, heads, kv_heads, head_dim, intermediate;
  float norm_eps;

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  int64_t group() const { return heads / kv_heads; }
};

// Norms are float32 (hidden,). Nothing is owned: the caller keeps the weights.
struct DecoderLayer {
  const float* attn_norm;
  Linear q, k, v, o;
  const float* ffn_norm;
  Linear gate, up, down;
};

// Tokens of one sequence that are read together: they follow `length` tokens, and what is known of
// all of them lies in its blocks.
struct Segment {
  int64_t num_tokens, length;
  const int32_t* blocks;
};

// Keys and values: block b of layer i at layers[i] + b * block_bytes, its heads one after another.
struct CacheView {
  KVType type;
  std::vector<uint8_t*> layers;
};

// How the outputs of a product are divided into tasks: large ones first, for memory is read best in
// long runs, then small ones, so that threads end together. Every task begins at a multiple of 32.
class OutputTasks {
 public:
  OutputTasks(int64_t outputs, int64_t num_rows, int num_threads);
  int64_t count() const;
  std::pair<int64_t, int64_t> range(int64_t task) const;

 private:
  int64_t outputs_, large_, small_, num_large_;
};

class Decoder {
 public:
  // head_dim is a multiple of 32, heads of kv_heads.
  Decoder(const DecoderShape& shape, std::vector<DecoderLayer> layers, const float* norm);

  const DecoderShape& shape() const { return shape_; }
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }

  // Hidden values x (num_rows, hidden) float32 of all segments, one after another, become those
  // after the last layer and the norm, where there is one. cos, sin (num_rows, head_dim). The
  // segments have as many tokens as there are rows, and room for them in their blocks.
  //
  // of_prompt: all are chunks of prompts. A token of one comes out the same bit for bit, wherever its
  // prompt is cut; it may be rounded as a few rows are not.
  void extend(float* x, int64_t num_rows, const float* cos, const float* sin,
              const std::vector<Segment>& segments, const CacheView& cache, bool of_prompt);

  // One layer's attention without its products: q (num_rows, heads * head_dim), k and v (num_rows,
  // kv_heads * head_dim), float32, without biases to come. q and k are rotated in place. out as q.
  void attend(int64_t layer, float* q, float* k, const float* v, int64_t num_rows,
              const float* cos, const float* sin, const std::vector<Segment>& segments,
              const CacheView& cache, bool of_prompt, float* out);

 private:
  // A part of a segment's tokens that attends together, to keys [first_key, last_key).
  struct Attention {
    int64_t segment, row, num_tokens, part, first_key, last_key;
  };
  struct Rows {
    float *q, *k;
    const float *v, *cos, *sin;
    float* out;
  };

  void plan(int64_t num_rows, const std::vector<Segment>& segments, bool of_prompt);
  void attend_phases(Team& team, uint8_t* layer, const Rows& rows, KVType type);
  void store_tokens(uint8_t* layer, const Rows& rows, const KVLayout& layout, int64_t first,
                    int64_t last, int64_t head);
  void attend_part(uint8_t* layer, const Rows& rows, const KVLayout& layout,
                   const Attention& part, int64_t head);
  void combine_row(const Rows& rows, int64_t row);
  void run_layer(Team& team, const DecoderLayer& layer, uint8_t* cache, KVType type, float* x,
                 const Rows& rows);
  void norm_tile(const float* x, const float* weight, int64_t tile, Inputs& to);
  void ffn_part(const DecoderLayer& layer, int64_t first, int64_t last);

  const DecoderShape shape_;
  const std::vector<DecoderLayer> layers_;
  const float* const norm_;

  std::mutex mutex_;  // what follows belongs to one call at a time
  int64_t num_rows_ = 0;
  std::vector<const Segment*> segment_of_;  // by row
  std::vector<int64_t> position_of_;        // by row
  std::vector<int64_t> num_parts_of_;       // by row: in how many parts its keys are attended to
  std::vector<Attention> attention_;
  int64_t max_parts_ = 1;
  Inputs attn_in_, o_in_, ffn_in_, down_in_;
  Buffer normed_, q_, k_, v_, attended_, parts_, states_, hidden_;
};

}  // namespace ivl
