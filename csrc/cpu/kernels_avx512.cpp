// The kernels for x86 processors with AVX-512.
#include "kernels.h"
#include "kernels_headers.h"

#if defined(__x86_64__)
#define ARGS_FAST_TARGET "avx512f,avx2,fma,f16c"
#define ARGS_FAST_ISA avx512
#define ARGS_FAST_WIDTH 16
#include "kernels_impl.h"
#endif
