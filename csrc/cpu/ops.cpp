// The CPU ops as torch sees them: the schemas of args_fast/ops/schemas.py, which Python defines before
// it loads this library, on torch's stable ABI.

#include "kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace args_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The best kernels that the processor has, asked once in the life of the process. For the tests,
// ARGS_FAST_CPU=avx2 or baseline asks for no better than these.
struct Choice {
  const char* name;
  const Kernels* kernels;
};

const Choice& choice() {
  static const Choice best = [] {
#if defined(__x86_64__)
    const char* asked = std::getenv("ARGS_FAST_CPU");
    const std::string limit = asked == nullptr ? "" : asked;
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && limit != "avx2" && limit != "baseline")
      return Choice{"avx512", &avx512::kernels};
    if (has_avx2 && limit != "baseline") return Choice{"avx2", &avx2::kernels};
#endif
    return Choice{"baseline", &baseline::kernels};
  }();
  return best;
}

const Kernels& kernels() { return *choice().kernels; }

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    default: STD_TORCH_CHECK(false, "args_fast: tensors must be float32, bfloat16 or float16");
  }
}

void check_type(const Tensor& tensor, ScalarType wanted, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == wanted, "args_fast: ", name, " has the wrong dtype");
}

void check_rows(const Tensor& tensor, const char* name) {
  const int64_t last = tensor.dim() - 1;
  STD_TORCH_CHECK(
      tensor.stride(last) == 1 || tensor.size(last) == 1,
      "args_fast: the last dimension of ", name, " must be contiguous");
}

constexpr int64_t ANY = -1;

// Everything below reads raw memory, so every size is checked here before it does.
void check_shape(
    const Tensor& tensor, std::initializer_list<int64_t> wanted, const char* name) {
  bool agrees = tensor.dim() == int64_t(wanted.size());
  int64_t i = 0;
  for (const int64_t size : wanted) {
    agrees = agrees && (size == ANY || tensor.size(i) == size);
    ++i;
  }
  STD_TORCH_CHECK(
      agrees, "args_fast: ", name, " does not have the shape that the other arguments ask for");
}

void check_pages(const int32_t* table, int64_t count, int64_t pages) {
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(
        0 <= table[i] && table[i] < pages, "args_fast: page ", table[i],
        " does not exist; there are ", pages);
}

void strides_of(const Tensor& tensor, int64_t count, int64_t* strides) {
  for (int64_t i = 0; i < count; ++i) strides[i] = tensor.stride(i);
}

std::vector<float> floats_of(const Tensor& tensor) {
  std::vector<float> values(tensor.numel());
  const Tensor wide = torch::stable::contiguous(
      torch::stable::to(tensor, std::make_optional(ScalarType::Float)));
  std::memcpy(values.data(), wide.data_ptr(), values.size() * sizeof(float));
  return values;
}

Tensor empty(const Tensor& like, std::vector<int64_t> size, ScalarType type) {
  return torch::stable::new_empty(like, size, type);
}

std::tuple<Tensor, Tensor> topk_logprobs(const Tensor& logits, int64_t k) {
  STD_TORCH_CHECK(logits.dim() == 2, "args_fast: logits must be [B, V]");
  const int64_t B = logits.size(0), V = logits.size(1);
  STD_TORCH_CHECK(1 <= k && k <= V, "args_fast: k is ", k, "; it must be from 1 to V = ", V);
  check_rows(logits, "logits");
  Tensor logprobs = empty(logits, {B, k}, ScalarType::Float);
  Tensor ids = empty(logits, {B, k}, ScalarType::Long);
  kernels().topk_logprobs(
      {type_of(logits), logits.data_ptr(), static_cast<float*>(logprobs.data_ptr()),
       static_cast<int64_t*>(ids.data_ptr()), B, V, k, logits.stride(0)});
  return {logprobs, ids};
}

Tensor branch_attention(
    const Tensor& q, const Tensor& tail_k, const Tensor& tail_v, const Tensor& k_pages,
    const Tensor& v_pages, const Tensor& page_table, const Tensor& prefix_lengths,
    const Tensor& tail_mask, double scale, int64_t sliding_window, double softcap,
    std::optional<Tensor> sinks) {
  check_shape(q, {ANY, ANY, ANY, ANY}, "q");
  check_shape(k_pages, {ANY, ANY, ANY, ANY}, "k_pages");
  const int64_t B = q.size(0), N = q.size(1), Hq = q.size(2), D = q.size(3);
  const int64_t pages = k_pages.size(0), page_size = k_pages.size(1), Hkv = k_pages.size(2);
  STD_TORCH_CHECK(
      Hkv > 0 && Hq % Hkv == 0, "args_fast: query heads must be a multiple of kv heads");
  check_shape(k_pages, {pages, page_size, Hkv, D}, "k_pages");
  check_shape(v_pages, {pages, page_size, Hkv, D}, "v_pages");
  check_shape(tail_k, {B, N, Hkv, D}, "tail_k");
  check_shape(tail_v, {B, N, Hkv, D}, "tail_v");
  check_shape(page_table, {B, ANY}, "page_table");
  check_shape(prefix_lengths, {B}, "prefix_lengths");
  check_shape(tail_mask, {N, N}, "tail_mask");
  STD_TORCH_CHECK(
      sliding_window >= 0, "args_fast: sliding_window is ", sliding_window, "; 0 means none");
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages})
    STD_TORCH_CHECK(
        tensor->scalar_type() == q.scalar_type(),
        "args_fast: q, tail and pages must be of one dtype");
  check_type(page_table, ScalarType::Int, "page_table");
  check_type(prefix_lengths, ScalarType::Int, "prefix_lengths");
  check_type(tail_mask, ScalarType::Bool, "tail_mask");
  STD_TORCH_CHECK(
      tail_mask.is_contiguous() && prefix_lengths.is_contiguous(),
      "args_fast: tail_mask and prefix_lengths must be contiguous");
  check_rows(page_table, "page_table");
  check_rows(q, "q");
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages}) check_rows(*tensor, "K, V");

  const auto* lengths = static_cast<const int32_t*>(prefix_lengths.data_ptr());
  const auto* table = static_cast<const int32_t*>(page_table.data_ptr());
  for (int64_t b = 0; b < B; ++b) {
    STD_TORCH_CHECK(
        0 <= lengths[b] && lengths[b] <= page_table.size(1) * page_size,
        "args_fast: a prefix length lies outside its page table");
    if (lengths[b] > 0)
      check_pages(table + b * page_table.stride(0), (lengths[b] - 1) / page_size + 1, pages);
  }

  Tensor out = empty(q, {B, N, Hq, D}, q.scalar_type());
  std::vector<float> sink_values;
  if (sinks.has_value()) {
    check_shape(*sinks, {Hq}, "sinks");
    sink_values = floats_of(*sinks);
  }
  Attention a{};
  a.type = type_of(q);
  a.q = q.data_ptr();
  a.tail_k = tail_k.data_ptr();
  a.tail_v = tail_v.data_ptr();
  a.k_pages = k_pages.data_ptr();
  a.v_pages = v_pages.data_ptr();
  a.page_table = table;
  a.lengths = lengths;
  a.mask = static_cast<const bool*>(tail_mask.data_ptr());
  a.sinks = sinks.has_value() ? sink_values.data() : nullptr;
  a.out = out.data_ptr();
  a.B = B;
  a.N = N;
  a.Hq = Hq;
  a.Hkv = Hkv;
  a.D = D;
  a.page_size = page_size;
  strides_of(q, 3, a.q_stride);
  strides_of(tail_k, 3, a.tail_k_stride);
  strides_of(tail_v, 3, a.tail_v_stride);
  strides_of(k_pages, 3, a.k_page_stride);
  strides_of(v_pages, 3, a.v_page_stride);
  a.table_stride = page_table.stride(0);
  a.scale = static_cast<float>(scale);
  a.softcap = static_cast<float>(softcap);
  a.window = sliding_window;
  kernels().attention(a);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> select(
    const Tensor& hidden, const Tensor& head_weight, std::optional<Tensor> head_bias,
    const Tensor& logprobs, const Tensor& w, const Tensor& temperature, const Tensor& noise) {
  check_shape(hidden, {ANY, ANY, ANY}, "hidden");
  const int64_t B = hidden.size(0), k = hidden.size(1), H = hidden.size(2);
  STD_TORCH_CHECK(k > 0, "args_fast: there must be a candidate to select");
  check_shape(head_weight, {H}, "head_weight");
  check_shape(logprobs, {B, k}, "logprobs");
  check_shape(noise, {B, k}, "noise");
  check_shape(w, {B}, "w");
  check_shape(temperature, {B}, "temperature");
  if (head_bias.has_value()) check_shape(*head_bias, {1}, "head_bias");
  check_rows(hidden, "hidden");
  check_rows(noise, "noise");
  for (const Tensor* tensor : {&logprobs, &w, &temperature, &noise})
    check_type(*tensor, ScalarType::Float, "logprobs, w, temperature or noise");
  STD_TORCH_CHECK(
      logprobs.is_contiguous() && w.is_contiguous() && temperature.is_contiguous(),
      "args_fast: logprobs, w and temperature must be contiguous");
  const std::vector<float> weight = floats_of(head_weight);
  const float bias = head_bias.has_value() ? floats_of(*head_bias)[0] : 0.0f;
  Tensor branch = empty(hidden, {B}, ScalarType::Long);
  Tensor reward = empty(hidden, {B}, ScalarType::Float);
  Tensor score = empty(hidden, {B}, ScalarType::Float);
  Select a{};
  a.type = type_of(hidden);
  a.hidden = hidden.data_ptr();
  a.weight = weight.data();
  a.bias = bias;
  a.logprobs = static_cast<const float*>(logprobs.data_ptr());
  a.w = static_cast<const float*>(w.data_ptr());
  a.temperature = static_cast<const float*>(temperature.data_ptr());
  a.noise = static_cast<const float*>(noise.data_ptr());
  a.branch = static_cast<int64_t*>(branch.data_ptr());
  a.reward = static_cast<float*>(reward.data_ptr());
  a.score = static_cast<float*>(score.data_ptr());
  a.B = B;
  a.k = k;
  a.H = H;
  strides_of(hidden, 2, a.hidden_stride);
  a.noise_stride = noise.stride(0);
  kernels().select(a);
  return {branch, reward, score};
}

// Moves bytes only, so it is the same for every type and instruction set.
void commit(
    const Tensor& tail_k, const Tensor& tail_v, const Tensor& branch, const Tensor& k_pages,
    const Tensor& v_pages, const Tensor& page_table, const Tensor& lengths) {
  check_shape(tail_k, {ANY, ANY, ANY, ANY, ANY}, "tail_k");
  check_shape(k_pages, {ANY, ANY, ANY, ANY, ANY}, "k_pages");
  const int64_t L = tail_k.size(0), B = tail_k.size(1), N = tail_k.size(2);
  const int64_t Hkv = tail_k.size(3), D = tail_k.size(4);
  const int64_t pages = k_pages.size(1), page_size = k_pages.size(2);
  check_shape(tail_v, {L, B, N, Hkv, D}, "tail_v");
  check_shape(k_pages, {L, pages, page_size, Hkv, D}, "k_pages");
  check_shape(v_pages, {L, pages, page_size, Hkv, D}, "v_pages");
  check_shape(page_table, {B, ANY}, "page_table");
  check_shape(branch, {B}, "branch");
  check_shape(lengths, {B}, "lengths");
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages})
    STD_TORCH_CHECK(
        tensor->is_contiguous() && tensor->scalar_type() == tail_k.scalar_type(),
        "args_fast: tail and pages must be contiguous and of one dtype");
  check_type(branch, ScalarType::Long, "branch");
  check_type(page_table, ScalarType::Int, "page_table");
  check_type(lengths, ScalarType::Int, "lengths");
  check_rows(page_table, "page_table");
  STD_TORCH_CHECK(
      branch.is_contiguous() && lengths.is_contiguous(),
      "args_fast: branch and lengths must be contiguous");
  const int64_t row = Hkv * D * (type_of(tail_k) == Type::f32 ? 4 : 2);
  const auto* table = static_cast<const int32_t*>(page_table.data_ptr());
  const auto* winner = static_cast<const int64_t*>(branch.data_ptr());
  auto* length = static_cast<int32_t*>(lengths.data_ptr());
  for (int64_t b = 0; b < B; ++b) {  // all of them before anything is written
    STD_TORCH_CHECK(
        0 <= length[b] && length[b] < page_table.size(1) * page_size && 0 <= winner[b] &&
            winner[b] < N,
        "args_fast: commit is outside the page table or the tail");
    check_pages(table + b * page_table.stride(0) + length[b] / page_size, 1, pages);
  }
  auto* k_to = static_cast<char*>(k_pages.data_ptr());
  auto* v_to = static_cast<char*>(v_pages.data_ptr());
  const auto* k_from = static_cast<const char*>(tail_k.data_ptr());
  const auto* v_from = static_cast<const char*>(tail_v.data_ptr());
  for (int64_t b = 0; b < B; ++b) {
    const int64_t page = table[b * page_table.stride(0) + length[b] / page_size];
    for (int64_t layer = 0; layer < L; ++layer) {
      const int64_t from = ((layer * B + b) * N + winner[b]) * row;
      const int64_t to = ((layer * pages + page) * page_size + length[b] % page_size) * row;
      std::memcpy(k_to + to, k_from + from, row);
      std::memcpy(v_to + to, v_from + from, row);
    }
    ++length[b];
  }
}

}  // namespace
}  // namespace args_fast

STABLE_TORCH_LIBRARY_IMPL(args_fast_cpp, CPU, m) {
  m.impl("topk_logprobs", TORCH_BOX(&args_fast::topk_logprobs));
  m.impl("branch_attention", TORCH_BOX(&args_fast::branch_attention));
  m.impl("select", TORCH_BOX(&args_fast::select));
  m.impl("commit", TORCH_BOX(&args_fast::commit));
}

// Which kernels run, for the tests and for reports.
extern "C" const char* args_fast_cpu_kernels() {
  return args_fast::choice().name;
}
