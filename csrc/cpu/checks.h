// The sizes, types and pages that a binding checks before a kernel reads raw memory.
#pragma once

#include "../binding.h"
#include "kernels.h"

#include <cstring>
#include <optional>
#include <vector>

namespace args_fast {

inline void check_rows(const Tensor& tensor, const char* name) {
  const int64_t last = tensor.dim() - 1;
  STD_TORCH_CHECK(
      tensor.stride(last) == 1 || tensor.size(last) == 1, "args_fast: the last dimension of ", name,
      " must be contiguous");
}

constexpr int64_t ANY = -1;

// Everything below reads raw memory, so every size is checked here before it does.
inline void check_shape(
    const Tensor& tensor, const std::vector<int64_t>& wanted, const char* name) {
  bool agrees = tensor.dim() == int64_t(wanted.size());
  int64_t i = 0;
  for (const int64_t size : wanted) {
    agrees = agrees && (size == ANY || tensor.size(i) == size);
    ++i;
  }
  STD_TORCH_CHECK(
      agrees, "args_fast: ", name, " does not have the shape that the other arguments ask for");
}

inline void check_pages(const int32_t* table, int64_t count, int64_t pages) {
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(
        0 <= table[i] && table[i] < pages, "args_fast: page ", table[i],
        " does not exist; there are ", pages);
}

// Of `count` dimensions, from the first one given.
inline void strides_of(const Tensor& tensor, int64_t first, int64_t count, int64_t* strides) {
  for (int64_t i = 0; i < count; ++i) strides[i] = tensor.stride(first + i);
}

// How weights [N, K] are stored, where everything else is of a type; which they must be, or one of those
// that are stored next to it.
inline Storage storage_of(const Tensor& weight, ScalarType type, const char* name) {
  const ScalarType own = weight.scalar_type();
  if (own == ScalarType::Char) return Storage::int8;
  if (type == ScalarType::Float && own == ScalarType::BFloat16) return Storage::bfloat16;
  if (type == ScalarType::Float && own == ScalarType::Half) return Storage::float16;
  check_type(weight, type, name);
  return weight.size(1) > 1 && weight.stride(1) != 1 ? Storage::columns : Storage::rows;
}

inline std::vector<float> floats_of(const Tensor& tensor) {
  std::vector<float> values(tensor.numel());
  const Tensor wide =
      torch::stable::contiguous(torch::stable::to(tensor, std::make_optional(ScalarType::Float)));
  std::memcpy(values.data(), wide.data_ptr(), values.size() * sizeof(float));
  return values;
}

}  // namespace args_fast
