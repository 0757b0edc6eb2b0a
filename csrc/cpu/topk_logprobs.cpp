// topk_logprobs as torch sees it.
#include "checks.h"
#include "ops.h"

namespace args_fast {

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

}  // namespace args_fast
