// The kernels from several threads at once, without Python, for the sanitizers (CONTRIBUTING.md says
// how to run it). It ends with 0 when every result is what one thread alone had computed before.
//
// Results of each instruction set do not depend on the number of threads, so they are compared bit
// for bit, while other threads compute, set the number of threads, or run out of memory.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "allocate.hpp"
#include "bfloat16_matmul.hpp"
#include "decoder.hpp"
#include "dense_matrix.hpp"
#include "float_matmul.hpp"
#include "isa.hpp"
#include "matmul.hpp"
#include "quantize.hpp"
#include "threads.hpp"

namespace {

using Floats = std::vector<float>;

void check(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

Floats random_floats(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

bool same(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

// --- what is computed: each makes its own inputs, and gives its results ---

std::vector<uint8_t> encoded(int type_id, const Floats& weights) {
  const ivl::Codec& codec = *ivl::kernels().find_codec(type_id);
  const int64_t count = static_cast<int64_t>(weights.size()) / codec.block_size;
  std::vector<uint8_t> blocks(static_cast<size_t>(count * codec.block_bytes));
  ivl::encode_blocks(codec, {weights.data(), nullptr, 1, 0, count, 1e30f, blocks.data()});
  return blocks;
}

std::unique_ptr<ivl::PackedMatrix> packed(int type_id, int64_t rows, int64_t columns, unsigned seed) {
  const auto blocks = encoded(type_id, random_floats(rows * columns, seed));
  return std::make_unique<ivl::PackedMatrix>(
      std::vector<ivl::PackedMatrix::Part>{{blocks.data(), rows}}, type_id, columns);
}

Floats codecs() {
  Floats all;
  for (int type_id : {2, 3, 6, 7, 8, 10, 11, 12, 13, 14}) {
    const Floats weights = random_floats(300 * 256, 1);
    const auto blocks = encoded(type_id, weights);
    const ivl::Codec& codec = *ivl::kernels().find_codec(type_id);
    Floats decoded(weights.size());
    ivl::decode_blocks(codec, blocks.data(), static_cast<int64_t>(blocks.size()) / codec.block_bytes,
                       decoded.data());
    all.insert(all.end(), decoded.begin(), decoded.end());
  }
  return all;
}

Floats packed_products() {
  Floats all;
  for (int type_id : {2, 3, 6, 8, 10, 11, 12, 14}) {
    constexpr int64_t kRows = 300, kColumns = 512;
    const auto matrix = packed(type_id, kRows, kColumns, 2);
    const Floats bias = random_floats(kRows, 3);
    for (int64_t num_rows : {1, 5, 29}) {
      const Floats x = random_floats(num_rows * kColumns, 4);
      ivl::QuantizedRows rows;
      rows.quantize(x.data(), ivl::Dtype::float32, num_rows, kColumns);
      Floats out(static_cast<size_t>(num_rows * kRows));
      ivl::matmul(*matrix, bias.data(), rows, out.data(), ivl::Dtype::float32);
      all.insert(all.end(), out.begin(), out.end());
    }
    std::vector<int64_t> ids(40);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(7 * i) % kRows;
    Floats out(ids.size() * kColumns);
    matrix->rows_at(ids.data(), static_cast<int64_t>(ids.size()), out.data());
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

// The numbers as bfloat16, cut off.
std::vector<uint16_t> narrowed(const Floats& numbers) {
  std::vector<uint16_t> narrow(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &numbers[i], 4);
    narrow[i] = static_cast<uint16_t>(bits >> 16);
  }
  return narrow;
}

Floats float_products() {
  Floats all;
  constexpr int64_t kRows = 150, kColumns = 333;
  const Floats weights = random_floats(kRows * kColumns, 5);
  const std::vector<uint16_t> narrow = narrowed(weights);
  const auto multiply = [&](const void* numbers, ivl::Dtype dtype, const void* x,
                            ivl::Dtype x_dtype, int64_t num_rows) {
    Floats out(static_cast<size_t>(num_rows * kRows));
    ivl::float_matmul({numbers, dtype, kRows, kColumns, x, x_dtype, num_rows, nullptr, out.data(),
                       ivl::Dtype::float32});
    all.insert(all.end(), out.begin(), out.end());
  };
  for (int64_t num_rows : {1, 8, 29, 40}) {
    const Floats x = random_floats(num_rows * kColumns, 6);
    const std::vector<uint16_t> narrow_x = narrowed(x);
    multiply(weights.data(), ivl::Dtype::float32, x.data(), ivl::Dtype::float32, num_rows);
    multiply(narrow.data(), ivl::Dtype::bfloat16, x.data(), ivl::Dtype::float32, num_rows);
    multiply(narrow.data(), ivl::Dtype::bfloat16, narrow_x.data(), ivl::Dtype::bfloat16, num_rows);
  }
  return all;
}

Floats dense_product(ivl::Dense type) {
  constexpr int64_t kRows = 70, kInputs = 100, kOutputs = 90;
  const Floats x = random_floats(kRows * kInputs, 7), weight = random_floats(kOutputs * kInputs, 8);
  const Floats norm_weight(kInputs, 1.5f);
  const ivl::DenseMatrix matrix(type, {{weight.data(), ivl::Dtype::float32, kOutputs}}, kInputs,
                                nullptr);
  ivl::DenseActivations rows(type);
  rows.fill(x.data(), kRows, kInputs, {ivl::Norm::rms, norm_weight.data(), nullptr, 1e-6f});
  Floats out(kRows * kOutputs);
  matrix.multiply(rows, ivl::Epilogue::gelu, nullptr, out.data());
  return out;
}

Floats dense_products() {
  Floats all = dense_product(ivl::Dense::int8);
  const Floats qkv = random_floats(2 * 150 * 3 * 128, 9);
  for (ivl::Dense type : {ivl::Dense::float16, ivl::Dense::bfloat16}) {
    const bool half = type == ivl::Dense::float16;
    if (!(half ? ivl::has_float16_products() : ivl::has_bfloat16_products())) continue;
    const Floats product = dense_product(type);
    all.insert(all.end(), product.begin(), product.end());
    Floats out(2 * 150 * 128);
    ivl::tile_attention({type, qkv.data(), out.data(), 2, 150, 2, 64});
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

// Two layers of packed and of plain weights, and the memory of two sequences.
class Model {
 public:
  static constexpr int64_t kHidden = 256, kHeads = 8, kKVHeads = 2, kHeadDim = 32, kInner = 512;
  static constexpr int64_t kBlocks = 70;

  explicit Model(ivl::KVType type) : norm_(random_floats(kHidden, 20)) {
    const ivl::DecoderShape shape = {kHidden, kHeads, kKVHeads, kHeadDim, kInner, 1e-6f};
    std::vector<ivl::DecoderLayer> layers;
    for (int i = 0; i < 2; ++i) {
      layers.push_back({norm_.data(), quantized(12, shape.q_width(), kHidden),
                        narrow(shape.kv_width(), kHidden), quantized(8, shape.kv_width(), kHidden),
                        quantized(14, kHidden, shape.q_width()), norm_.data(),
                        quantized(12, kInner, kHidden), quantized(2, kInner, kHidden),
                        i ? plain(kHidden, kInner) : quantized(14, kHidden, kInner)});
    }
    const ivl::KVLayout layout = {type, kHeadDim};
    cache_.type = type;
    for (int i = 0; i < 2; ++i) {
      memory_.emplace_back(static_cast<size_t>(kBlocks * kKVHeads * layout.head_bytes()));
      cache_.layers.push_back(memory_.back().data());
    }
    for (int i = 0; i < kBlocks / 2; ++i) blocks_[0].push_back(2 * i), blocks_[1].push_back(2 * i + 1);
    decoder_ = std::make_unique<ivl::Decoder>(shape, std::move(layers), norm_.data());
  }

  // A prompt and a step of two sequences, then steps behind a context that is attended to in parts.
  Floats run() {
    Floats all;
    int64_t known[2] = {0, 600};
    for (auto sizes : {std::pair<int64_t, int64_t>{50, 1}, {1, 3}, {1, 1}}) {
      const int64_t rows = sizes.first + sizes.second;
      Floats x = random_floats(rows * kHidden, 21);
      const Floats cos = random_floats(rows * kHeadDim, 22), sin = random_floats(rows * kHeadDim, 23);
      decoder_->extend(x.data(), rows, cos.data(), sin.data(),
                       {{sizes.first, known[0], blocks_[0].data()},
                        {sizes.second, known[1], blocks_[1].data()}},
                       cache_, sizes.second > 1);  // the second time as if it were prompts
      known[0] += sizes.first, known[1] += sizes.second;
      all.insert(all.end(), x.begin(), x.end());
    }
    return all;
  }

 private:
  ivl::Linear quantized(int type_id, int64_t rows, int64_t columns) {
    matrices_.push_back(packed(type_id, rows, columns, static_cast<unsigned>(30 + matrices_.size())));
    return {matrices_.back().get(), nullptr, ivl::Dtype::float32, rows, columns, nullptr};
  }
  ivl::Linear plain(int64_t rows, int64_t columns) {
    numbers_.push_back(random_floats(rows * columns, static_cast<unsigned>(60 + numbers_.size())));
    return {nullptr, numbers_.back().data(), ivl::Dtype::float32, rows, columns, nullptr};
  }

  ivl::Linear narrow(int64_t rows, int64_t columns) {
    const auto seed = static_cast<unsigned>(80 + narrow_.size());
    narrow_.push_back(narrowed(random_floats(rows * columns, seed)));
    return {nullptr, narrow_.back().data(), ivl::Dtype::bfloat16, rows, columns, nullptr};
  }

  Floats norm_;
  std::vector<std::unique_ptr<ivl::PackedMatrix>> matrices_;
  std::vector<Floats> numbers_;
  std::vector<std::vector<uint16_t>> narrow_;
  std::vector<std::vector<uint8_t>> memory_;
  std::vector<int32_t> blocks_[2];
  ivl::CacheView cache_;
  std::unique_ptr<ivl::Decoder> decoder_;
};

Floats decoder() {
  Floats all;
  for (ivl::KVType type : {ivl::KVType::float32, ivl::KVType::float16, ivl::KVType::int8}) {
    const Floats of_type = Model(type).run();
    all.insert(all.end(), of_type.begin(), of_type.end());
  }
  return all;
}

struct Subject {
  const char* name;
  std::function<Floats()> compute;
};

const std::vector<Subject> kSubjects = {{"codecs", codecs},
                                        {"packed products", packed_products},
                                        {"float products", float_products},
                                        {"dense products", dense_products},
                                        {"decoder", decoder}};

// --- what is asked of it ---

void together(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

// Threads compute, while another sets how many threads of the pool they may use.
void test_at_once(const Subject& subject, const Floats& expected) {
  std::atomic<int> computing{3};
  together(4, [&](int i) {
    if (i == 3) {
      for (int n = 0; computing.load() > 0; ++n) {
        ivl::set_num_threads(1 + n % 4);
        check(ivl::num_threads() >= 1, "a number of threads");
        ivl::use_isa(ivl::current_isa().name);
        std::this_thread::yield();
      }
      return;
    }
    check(same(subject.compute(), expected), std::string(subject.name) + " at once");
    --computing;
  });
  ivl::set_num_threads(3);
}

// One allocation after the other fails, on whichever thread it is.
void test_failures(const Subject& subject, const Floats& expected) {
  int failures = 0;
  for (int64_t after = 0;; ++after) {
    check(after < 10000, "allocations come to an end");
    bool failed = false;
    ivl::set_num_threads(2 + after % 2);  // another pool, whose threads have no memory yet
    std::thread([&] {
      ivl::fail_allocation(after);
      try {
        subject.compute();
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      ivl::fail_allocation(-1);
    }).join();
    failures += failed;
    if (!failed) break;
    if (after % 8 == 0) check(same(subject.compute(), expected), std::string(subject.name) + " after a failure");
  }
  check(failures > 0 || std::string(subject.name) == "codecs", "something was allocated");
  std::printf("    %d allocations failed and were survived\n", failures);
}

void test_pool() {
  for (int threads : {1, 2, 5}) {
    ivl::set_num_threads(threads);
    together(4, [](int) {
      for (int round = 0; round < 200; ++round) {
        std::vector<std::atomic<int>> counts(50);
        ivl::parallel_for(50, [&](int64_t task) { counts[static_cast<size_t>(task)] += 1; });
        for (const auto& count : counts) check(count == 1, "a task runs once");
        for (int64_t phases : {0, 3}) {
          const auto failing = [&](int64_t task) {
            if (task == round % 50) throw std::runtime_error("of task");
          };
          bool caught = false;
          try {
            if (phases == 0) {
              ivl::parallel_for(50, failing);
            } else {
              ivl::parallel_phases(phases, [&](ivl::Team& team) {
                team.for_each(50, [](int64_t) {});
                team.for_each(50, failing);
                team.for_each(50, [](int64_t) {});
              });
            }
          } catch (const std::runtime_error& error) {
            caught = std::string(error.what()) == "of task";
          }
          check(caught, "the exception of a task reaches its caller");
        }
      }
    });
  }
}

// Instruction sets change while kernels run: what is computed then is any of them, in its memory.
void test_changing_isa() {
  ivl::set_num_threads(3);
  std::atomic<int> computing{2};
  together(3, [&](int i) {
    if (i < 2) {
      for (int round = 0; round < 3; ++round) float_products(), decoder(), dense_product(ivl::Dense::int8);
      --computing;
      return;
    }
    const auto usable = ivl::usable_isas();
    for (size_t n = 0; computing.load() > 0; ++n) {
      ivl::use_isa(usable[n % usable.size()]->name);
      std::this_thread::yield();
    }
  });
}

}  // namespace

extern "C" const char* test_header(void);  // of header.c: what is wrong, or null

int main() {
  const char* wrong = test_header();
  check(wrong == nullptr, wrong ? wrong : "");
  // Before anything was chosen: all threads choose.
  together(4, [](int) { check(&ivl::current_isa() == ivl::usable_isas().back(), "the best set"); });
  std::printf("pool\n");
  test_pool();
  for (const ivl::Isa* isa : ivl::usable_isas()) {
    ivl::use_isa(isa->name);
    for (const Subject& subject : kSubjects) {
      std::printf("%s: %s\n", isa->name, subject.name);
      std::fflush(stdout);
      ivl::set_num_threads(1);
      const Floats expected = subject.compute();
      test_at_once(subject, expected);
      test_failures(subject, expected);
    }
  }
  std::printf("changing instruction sets\n");
  test_changing_isa();
  std::printf("all well\n");
  return 0;
}
