// The kernels for x86 processors with AVX-512. The standard headers stay outside the target
// region, so that nothing of theirs is compiled for it and merged into code that runs everywhere.
#include "kernels.h"
#include "kernels_headers.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,f16c")
#endif
#define ARGS_FAST_ISA avx512
#define ARGS_FAST_WIDTH 16
#include "kernels_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
