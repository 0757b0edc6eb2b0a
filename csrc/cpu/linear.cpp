// linear as torch sees it.
#include "checks.h"
#include "ops.h"

namespace args_fast {

Tensor linear(
    const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
    std::optional<Tensor> scale) {
  check_shape(weight, {ANY, ANY}, "weight");
  const int64_t N = weight.size(0), K = weight.size(1);
  STD_TORCH_CHECK(
      x.dim() >= 1 && x.size(x.dim() - 1) == K,
      "args_fast: the last dimension of x must be that of weight, ", K);
  check_rows(weight, "weight");
  const Storage storage = storage_of(weight, x.scalar_type(), "weight");
  STD_TORCH_CHECK(
      (storage == Storage::int8) == scale.has_value(),
      "args_fast: a weight of integers has a scale, and no other");
  if (scale.has_value()) {
    check_shape(*scale, {N}, "scale");
    check_type(*scale, ScalarType::Float, "scale");
    check_rows(*scale, "scale");
  }
  if (bias.has_value()) {
    check_shape(*bias, {N}, "bias");
    check_type(*bias, x.scalar_type(), "bias");
    check_rows(*bias, "bias");
  }
  int64_t M = 1;
  std::vector<int64_t> size;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    size.push_back(x.size(i));
    M *= x.size(i);
  }
  size.push_back(N);
  Tensor out = empty(x, size, x.scalar_type());
  if (M == 0 || N == 0) return out;
  const Tensor rows = torch::stable::contiguous(x);
  Linear a{};
  a.type = type_of(x);
  a.storage = storage;
  a.x = rows.data_ptr();
  a.weight = weight.data_ptr();
  a.scale = scale.has_value() ? static_cast<const float*>(scale->data_ptr()) : nullptr;
  a.bias = bias.has_value() ? bias->data_ptr() : nullptr;
  a.out = out.data_ptr();
  a.M = M;
  a.N = N;
  a.K = K;
  a.x_stride = K;
  a.weight_stride = weight.stride(0);
  kernels().linear(a);
  return out;
}

}  // namespace args_fast
