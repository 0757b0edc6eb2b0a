// select as torch sees it.
#include "checks.h"
#include "ops.h"

namespace args_fast {

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
  strides_of(hidden, 0, 2, a.hidden_stride);
  a.noise_stride = noise.stride(0);
  kernels().select(a);
  return {branch, reward, score};
}

}  // namespace args_fast
