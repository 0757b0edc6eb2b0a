// record: the end of a step, as args_fast/ops/record.py describes it. A handful of numbers for each
// request, which torch would move by a dozen ops.
#include "checks.h"
#include "ops.h"

#include <algorithm>

namespace args_fast {

void record(
    const Tensor& ids, const Tensor& logprobs, const Tensor& branch, const Tensor& reward,
    const Tensor& score, const Tensor& noise, const Tensor& step_index, const Tensor& token,
    const Tensor& tokens, const Tensor& stats, const Tensor& draws) {
  check_shape(noise, {ANY, ANY, ANY}, "noise");
  const int64_t B = noise.size(0), S = noise.size(1), k = noise.size(2);
  for (const Tensor* tensor : {&ids, &logprobs, &draws})
    check_shape(*tensor, {B, k}, "ids, logprobs or draws");
  for (const Tensor* tensor : {&branch, &reward, &score})
    check_shape(*tensor, {B}, "branch, reward or score");
  check_shape(step_index, {1}, "step_index");
  check_shape(token, {B, 1}, "token");
  check_shape(tokens, {B, S}, "tokens");
  check_shape(stats, {B, S, 3}, "stats");
  for (const Tensor* tensor : {&ids, &branch, &step_index, &token, &tokens})
    check_type(*tensor, ScalarType::Long, "ids, branch, step_index, token or tokens");
  for (const Tensor* tensor : {&logprobs, &reward, &score, &noise, &stats, &draws})
    check_type(*tensor, ScalarType::Float, "logprobs, reward, score, noise, stats or draws");
  for (const Tensor* tensor : {&noise, &token, &tokens, &stats, &draws})
    STD_TORCH_CHECK(
        tensor->is_contiguous(),
        "args_fast: noise, token, tokens, stats and draws must be contiguous");
  auto& step = *static_cast<int64_t*>(step_index.data_ptr());
  STD_TORCH_CHECK(0 <= step && step < S, "args_fast: record is after the last step of the burst");
  const auto* winner = static_cast<const int64_t*>(branch.data_ptr());
  for (int64_t b = 0; b < B; ++b)  // all of them before anything is written
    STD_TORCH_CHECK(
        0 <= winner[b * branch.stride(0)] && winner[b * branch.stride(0)] < k,
        "args_fast: record of a branch that is not a candidate");
  const auto at = [](const Tensor& x, int64_t b) {
    return static_cast<const float*>(x.data_ptr())[b * x.stride(0)];
  };
  for (int64_t b = 0; b < B; ++b) {
    const int64_t i = winner[b * branch.stride(0)];
    const int64_t id =
        static_cast<const int64_t*>(ids.data_ptr())[b * ids.stride(0) + i * ids.stride(1)];
    static_cast<int64_t*>(token.data_ptr())[b] = id;
    static_cast<int64_t*>(tokens.data_ptr())[b * S + step] = id;
    float* of_step = static_cast<float*>(stats.data_ptr()) + (b * S + step) * 3;
    of_step[0] = static_cast<const float*>(
        logprobs.data_ptr())[b * logprobs.stride(0) + i * logprobs.stride(1)];
    of_step[1] = at(reward, b);
    of_step[2] = at(score, b);
    const float* next =
        static_cast<const float*>(noise.data_ptr()) + (b * S + std::min(step + 1, S - 1)) * k;
    std::copy_n(next, k, static_cast<float*>(draws.data_ptr()) + b * k);
  }
  ++step;
}

}  // namespace args_fast
