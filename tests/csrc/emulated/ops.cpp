// csrc/cuda/ops.cpp for tensors on the CPU, as torch.ops.args_fast_emulated: the binding is tested with
// the kernels. What it asks of the device is answered here, and its words for the device are changed.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace torch::stable::accelerator {
struct EmulatedGuard {
  explicit EmulatedGuard(int) {}
};
}  // namespace torch::stable::accelerator

inline AOTITorchError emulated_current_stream(int, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

#define aoti_torch_get_current_cuda_stream emulated_current_stream
#define DeviceGuard EmulatedGuard
#define is_cuda is_cpu
#define args_fast_cuda args_fast_emulated
#define CUDA CPU
#include "../../../csrc/cuda/ops.cpp"
