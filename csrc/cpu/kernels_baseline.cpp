// The kernels for any processor: eight-wide vectors become whatever the target has.
#include "kernels.h"
#include "kernels_headers.h"

#define ARGS_FAST_ISA baseline
#include "kernels_impl.h"
