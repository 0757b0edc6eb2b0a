// The CPU ops as torch sees them: the schemas of args_fast/ops/schemas.py, which Python defines before
// it loads this library, on torch's stable ABI.
#include "ops.h"

#include <torch/csrc/stable/library.h>

#ifdef ARGS_FAST_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace args_fast {
namespace {

// The best kernels that the processor has, asked once in the life of the process. Those of bfloat16
// pairs fetch weights as AMD's processors like it (packed_rows.h); Intel's with such pairs have tiles
// too, unless a virtual machine hides them. For the tests, ARGS_FAST_CPU=avx512bf16, avx512, avx2 or
// baseline asks for no better than these.
struct Choice {
  const char* name;
  const Kernels* kernels;
};

#ifdef ARGS_FAST_HAS_AMX
// Whether the processor has tiles of bfloat16, and Linux lets this process use them.
bool has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
  constexpr int ASK = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (d & BF16) && (d & TILE) && syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
}
#endif

const Choice& choice() {
  static const Choice best = [] {
#if defined(__x86_64__)
    const char* asked = std::getenv("ARGS_FAST_CPU");
    const std::string limit = asked == nullptr ? "" : asked;
    // Every processor with AVX2 that is not an emulation has F16C too.
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f");
    const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bf16");
    const bool likes_pairs = __builtin_cpu_is("amd") || limit == "avx512bf16";
    const std::vector<std::pair<bool, Choice>> choices = {
#ifdef ARGS_FAST_HAS_AMX
        {has_bf16 && has_tiles(), {"amx", &amx::kernels}},
#endif
        {has_bf16 && likes_pairs, {"avx512bf16", &avx512bf16::kernels}},
        {has_avx512, {"avx512", &avx512::kernels}},
        {has_avx2, {"avx2", &avx2::kernels}},
    };
    bool allowed = limit.empty();
    for (const auto& [has, choice] : choices) {
      allowed = allowed || limit == choice.name;
      if (has && allowed) return choice;
    }
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
  m.impl("hold_layers", TORCH_BOX(&args_fast::hold_layers));
  m.impl("decoder_layers", TORCH_BOX(&args_fast::decoder_layers));
  m.impl("linear", TORCH_BOX(&args_fast::linear));
  m.impl("select", TORCH_BOX(&args_fast::select));
  m.impl("commit", TORCH_BOX(&args_fast::commit));
  m.impl("record", TORCH_BOX(&args_fast::record));
}

// For what has no tensor by which it could be dispatched.
STABLE_TORCH_LIBRARY_IMPL(args_fast_cpp, CompositeExplicitAutograd, m) {
  m.impl("release_layers", TORCH_BOX(&args_fast::release_layers));
}

// Which kernels run, for the tests and for reports.
extern "C" const char* args_fast_cpu_kernels() { return args_fast::choice().name; }
