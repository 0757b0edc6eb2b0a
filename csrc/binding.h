// What the bindings of the CPU and of the CUDA ops share, on torch's stable ABI.
#pragma once

#include "types.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace args_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    default: STD_TORCH_CHECK(false, "args_fast: tensors must be float32, bfloat16 or float16");
  }
}

inline void check_type(const Tensor& tensor, ScalarType wanted, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == wanted, "args_fast: ", name, " has the wrong dtype");
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> size, ScalarType type) {
  return torch::stable::new_empty(like, size, type);
}

}  // namespace args_fast
