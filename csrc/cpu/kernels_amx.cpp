// The kernels for Intel's processors with AMX.
#include "kernels.h"
#include "kernels_headers.h"

#ifdef ARGS_FAST_HAS_AMX
#define ARGS_FAST_TARGET "amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c"
#define ARGS_FAST_ISA amx
#define ARGS_FAST_WIDTH 16
#define ARGS_FAST_BF16
#define ARGS_FAST_AMX
#include "kernels_impl.h"
#endif
