// The CUDA ops as torch sees them: the schemas of args_fast/ops/schemas.py, which Python defines before
// it loads this library, on torch's stable ABI.

#ifndef USE_CUDA
#define USE_CUDA  // torch declares its functions about streams only with it
#endif

#include "../binding.h"
#include "kernels.h"
#include "tickets.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace args_fast::cuda {
namespace {

struct Place {
  int device;
  cudaStream_t stream;
};

Place current(const Tensor& tensor) {
  void* stream = nullptr;
  const int device = tensor.get_device_index();
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return {device, static_cast<cudaStream_t>(stream)};
}

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "args_fast: CUDA: ", cudaGetErrorString(error));
}

// On the same device, with this many dimensions, the last one contiguous.
void check_tensor(const Tensor& tensor, const Tensor& like, int64_t dimensions, const char* name) {
  STD_TORCH_CHECK(
      tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), "args_fast: ", name,
      " is on another device");
  STD_TORCH_CHECK(
      tensor.dim() == dimensions, "args_fast: ", name, " has ", tensor.dim(), " dimensions, not ",
      dimensions);
  STD_TORCH_CHECK(
      tensor.stride(dimensions - 1) == 1 || tensor.size(dimensions - 1) == 1,
      "args_fast: the last dimension of ", name, " must be contiguous");
}

void check_size(const Tensor& tensor, int64_t dimension, int64_t wanted, const char* name) {
  STD_TORCH_CHECK(
      tensor.size(dimension) == wanted, "args_fast: dimension ", dimension, " of ", name, " is ",
      tensor.size(dimension), ", not ", wanted);
}

std::tuple<Tensor, Tensor> topk_logprobs(const Tensor& logits, int64_t k) {
  static Tickets tickets;
  check_tensor(logits, logits, 2, "logits");
  const int64_t B = logits.size(0), V = logits.size(1);
  STD_TORCH_CHECK(1 <= k && k <= V, "args_fast: k is ", k, "; it must be from 1 to V = ", V);
  STD_TORCH_CHECK(k <= TOPK_MOST, "args_fast: k is ", k, "; the CUDA op takes ", TOPK_MOST);
  STD_TORCH_CHECK(
      V <= TOPK_LONGEST && B <= 65535, "args_fast: logits are ", B, " by ", V,
      "; the CUDA op takes 65535 by 2^30");
  Tensor logprobs = empty(logits, {B, k}, ScalarType::Float);
  Tensor ids = empty(logits, {B, k}, ScalarType::Long);
  if (B == 0) return {logprobs, ids};
  Tensor scratch = empty(logits, {topk_scratch(B, V, k)}, ScalarType::Long);

  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const auto [device, stream] = current(logits);
  TopK call{};
  call.type = type_of(logits);
  call.logits = logits.data_ptr();
  call.logprobs = static_cast<float*>(logprobs.data_ptr());
  call.ids = static_cast<int64_t*>(ids.data_ptr());
  call.scratch = static_cast<int64_t*>(scratch.data_ptr());
  call.B = B;
  call.V = V;
  call.k = k;
  call.stride = logits.stride(0);
  call.ticket = tickets.take(device, stream, B);
  check(launch_topk_logprobs(call, stream));
  return {logprobs, ids};
}

void strides_of(const Tensor& tensor, int64_t (&strides)[3]) {
  for (int64_t i = 0; i < 3; ++i) strides[i] = tensor.stride(i) * tensor.element_size();
}

int64_t multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

std::tuple<Tensor, Tensor, Tensor> select_commit(
    const Tensor& hidden, const Tensor& head_weight, std::optional<Tensor> head_bias,
    const Tensor& logprobs, const Tensor& w, const Tensor& temperature, const Tensor& noise,
    const Tensor& tail_k, const Tensor& tail_v, const Tensor& k_pages, const Tensor& v_pages,
    const Tensor& page_table, const Tensor& lengths) {
  static Tickets tickets;
  check_tensor(hidden, hidden, 3, "hidden");
  const int64_t B = hidden.size(0), k = hidden.size(1), H = hidden.size(2);
  STD_TORCH_CHECK(
      1 <= k && k <= SELECT_MOST, "args_fast: k is ", k, "; the CUDA op takes 1 to ", SELECT_MOST);
  STD_TORCH_CHECK(B <= 65535 && H < (1 << 30), "args_fast: hidden is too large");
  check_tensor(head_weight, hidden, 1, "head_weight");
  check_size(head_weight, 0, H, "head_weight");
  if (head_bias.has_value()) {
    check_tensor(*head_bias, hidden, 1, "head_bias");
    check_size(*head_bias, 0, 1, "head_bias");
  }
  const std::pair<const Tensor*, const char*> of_candidates[] = {
      {&logprobs, "logprobs"}, {&noise, "noise"}};
  for (const auto& [tensor, name] : of_candidates) {
    check_tensor(*tensor, hidden, 2, name);
    check_type(*tensor, ScalarType::Float, name);
    check_size(*tensor, 0, B, name);
    check_size(*tensor, 1, k, name);
  }
  const std::pair<const Tensor*, const char*> of_sequences[] = {
      {&w, "w"}, {&temperature, "temperature"}, {&lengths, "lengths"}};
  for (const auto& [tensor, name] : of_sequences) {
    check_tensor(*tensor, hidden, 1, name);
    check_type(*tensor, tensor == &lengths ? ScalarType::Int : ScalarType::Float, name);
    check_size(*tensor, 0, B, name);
  }
  check_tensor(page_table, hidden, 2, "page_table");
  check_type(page_table, ScalarType::Int, "page_table");
  check_size(page_table, 0, B, "page_table");
  const int64_t L = tail_k.size(0);
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages}) {
    const bool tail = tensor == &tail_k || tensor == &tail_v;
    const char* name = tail ? "the tail" : "the pages";
    check_tensor(*tensor, hidden, 5, name);
    check_type(*tensor, tail_k.scalar_type(), name);
    check_size(*tensor, 0, L, name);
    check_size(*tensor, 3, tail_k.size(3), name);
    check_size(*tensor, 4, tail_k.size(4), name);
    STD_TORCH_CHECK(
        tensor->stride(3) == tensor->size(4) || tensor->size(3) == 1, "args_fast: the rows of ",
        name, " must be contiguous");
    const Tensor& like = tail ? tail_k : k_pages;
    check_size(*tensor, 1, tail ? B : like.size(1), name);
    check_size(*tensor, 2, like.size(2), name);
  }
  STD_TORCH_CHECK(tail_k.size(2) >= k, "args_fast: the tail has fewer rows than candidates");
  type_of(tail_k);
  const int64_t row = tail_k.size(3) * tail_k.size(4) * tail_k.element_size();
  STD_TORCH_CHECK(L * row < (int64_t(1) << 30), "args_fast: the rows of all layers are too long");

  Tensor branch = empty(hidden, {B}, ScalarType::Long);
  Tensor reward = empty(hidden, {B}, ScalarType::Float);
  Tensor score = empty(hidden, {B}, ScalarType::Float);
  if (B == 0) return {branch, reward, score};

  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  const auto [device, stream] = current(hidden);
  // A head of hidden's own type, or of float32, is read as it is.
  const bool same = head_weight.scalar_type() == hidden.scalar_type();
  const Tensor weight =
      same ? head_weight : torch::stable::to(head_weight, std::make_optional(ScalarType::Float));
  SelectCommit call{};
  call.type = type_of(hidden);
  call.weight_type = type_of(weight);
  call.bias_type = head_bias.has_value() ? type_of(*head_bias) : Type::f32;
  call.hidden = hidden.data_ptr();
  call.weight = weight.data_ptr();
  call.bias = head_bias.has_value() ? head_bias->data_ptr() : nullptr;
  call.logprobs = static_cast<const float*>(logprobs.data_ptr());
  call.w = static_cast<const float*>(w.data_ptr());
  call.temperature = static_cast<const float*>(temperature.data_ptr());
  call.noise = static_cast<const float*>(noise.data_ptr());
  call.tail_k = tail_k.data_ptr();
  call.tail_v = tail_v.data_ptr();
  call.k_pages = k_pages.data_ptr();
  call.v_pages = v_pages.data_ptr();
  call.page_table = static_cast<const int32_t*>(page_table.data_ptr());
  call.lengths = static_cast<int32_t*>(lengths.data_ptr());
  call.branch = static_cast<int64_t*>(branch.data_ptr());
  call.reward = static_cast<float*>(reward.data_ptr());
  call.score = static_cast<float*>(score.data_ptr());
  call.B = B;
  call.k = k;
  call.H = H;
  call.L = L;
  call.P = page_table.size(1);
  call.pages = k_pages.size(1);
  call.page_size = k_pages.size(2);
  call.row = row;
  call.hidden_stride[0] = hidden.stride(0);
  call.hidden_stride[1] = hidden.stride(1);
  call.logprobs_stride = logprobs.stride(0);
  call.noise_stride = noise.stride(0);
  call.table_stride = page_table.stride(0);
  strides_of(tail_k, call.tail_k_stride);
  strides_of(tail_v, call.tail_v_stride);
  strides_of(k_pages, call.k_page_stride);
  strides_of(v_pages, call.v_page_stride);
  call.multiprocessors = multiprocessors(device);
  call.ticket = tickets.take(device, stream, B);
  check(launch_select_commit(call, stream));
  return {branch, reward, score};
}

}  // namespace
}  // namespace args_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(args_fast_cuda, CUDA, m) {
  m.impl("topk_logprobs", TORCH_BOX(&args_fast::cuda::topk_logprobs));
  m.impl("select_commit", TORCH_BOX(&args_fast::cuda::select_commit));
}
