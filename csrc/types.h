// The types of the tensors that the ops take, without torch.
#pragma once

#include <cstdint>

namespace args_fast {

enum class Type : int32_t { f32, bf16, f16 };

}  // namespace args_fast
