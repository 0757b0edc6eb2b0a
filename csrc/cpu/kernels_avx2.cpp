// The kernels for x86 processors with AVX2 and FMA.
#include "kernels.h"
#include "kernels_headers.h"

#if defined(__x86_64__)
#define ARGS_FAST_TARGET "avx2,fma,f16c"
#define ARGS_FAST_ISA avx2
#define ARGS_FAST_WIDTH 8
#include "kernels_impl.h"
#endif
