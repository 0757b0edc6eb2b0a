// The kernels for x86 processors with AVX-512 and its products of bfloat16 pairs.
#include "kernels.h"
#include "kernels_headers.h"

#if defined(__x86_64__)
#define ARGS_FAST_TARGET "avx512bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c"
#define ARGS_FAST_ISA avx512bf16
#define ARGS_FAST_WIDTH 16
#define ARGS_FAST_BF16
#define ARGS_FAST_PAST_CACHES
#include "kernels_impl.h"
#endif
