// The kernels for x86 processors with AVX-512 and its products of bfloat16 pairs. The standard headers stay outside the target
// region, so that nothing of theirs is compiled for it and merged into code that runs everywhere.
#include "kernels.h"
#include "kernels_headers.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                      \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c")
#endif
#define ARGS_FAST_ISA avx512bf16
#define ARGS_FAST_WIDTH 16
#define ARGS_FAST_BF16
#define ARGS_FAST_PAST_CACHES
#include "kernels_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
