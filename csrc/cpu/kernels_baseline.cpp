// The kernels for any processor: vectors of four, which SSE2 and NEON have.
#include "kernels.h"
#include "kernels_headers.h"

#define ARGS_FAST_ISA baseline
#define ARGS_FAST_WIDTH 4
#include "kernels_impl.h"
