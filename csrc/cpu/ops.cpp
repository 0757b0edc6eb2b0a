// The CPU ops as torch sees them: the schemas of args_fast/ops/schemas.py, which Python defines before
// it loads this library, on torch's stable ABI.
#include "ops.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

namespace args_fast {
namespace {

// The best kernels that the processor has, asked once in the life of the process. For the tests,
// ARGS_FAST_CPU=avx2 or baseline asks for no better than these.
struct Choice {
  const char* name;
  const Kernels* kernels;
};

const Choice& choice() {
  static const Choice best = [] {
#if defined(__x86_64__)
    const char* asked = std::getenv("ARGS_FAST_CPU");
    const std::string limit = asked == nullptr ? "" : asked;
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && limit != "avx2" && limit != "baseline")
      return Choice{"avx512", &avx512::kernels};
    if (has_avx2 && limit != "baseline") return Choice{"avx2", &avx2::kernels};
#endif
    return Choice{"baseline", &baseline::kernels};
  }();
  return best;
}

}  // namespace

const Kernels& kernels() { return *choice().kernels; }

}  // namespace args_fast

STABLE_TORCH_LIBRARY_IMPL(args_fast_cpp, CPU, m) {
  m.impl("topk_logprobs", TORCH_BOX(&args_fast::topk_logprobs));
  m.impl("branch_attention", TORCH_BOX(&args_fast::branch_attention));
  m.impl("select", TORCH_BOX(&args_fast::select));
  m.impl("commit", TORCH_BOX(&args_fast::commit));
}

// Which kernels run, for the tests and for reports.
extern "C" const char* args_fast_cpu_kernels() {
  return args_fast::choice().name;
}
