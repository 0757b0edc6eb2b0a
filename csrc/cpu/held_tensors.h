// Tensors that stay here between calls of an op, by a number. Each tensor that an op takes costs a tenth
// of a microsecond on its way through torch's dispatcher, and a model's layers are hundreds of them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace args_fast {

typedef std::array<std::vector<torch::stable::Tensor>, 2> HeldTensors;  // weights, low_rank

// Those of hold_layers. They live as long as what is returned, whoever releases them meanwhile.
std::shared_ptr<const HeldTensors> held_tensors(int64_t number);

}  // namespace args_fast
