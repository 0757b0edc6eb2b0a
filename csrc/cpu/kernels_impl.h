// Every kernel, for the instruction set that the including file names: ARGS_FAST_TARGET, or what every
// processor has. The standard headers are included before, outside the target region, so that nothing of
// theirs is compiled for it and merged into code that runs everywhere.
#define ARGS_FAST_PRAGMA(text) _Pragma(#text)
#if defined(ARGS_FAST_TARGET) && defined(__clang__)
#define ARGS_FAST_CLANG_TARGET(target_) \
  ARGS_FAST_PRAGMA(clang attribute push(__attribute__((target(target_))), apply_to = function))
ARGS_FAST_CLANG_TARGET(ARGS_FAST_TARGET)
#elif defined(ARGS_FAST_TARGET)
#define ARGS_FAST_GCC_TARGET(target_) ARGS_FAST_PRAGMA(GCC target(target_))
#pragma GCC push_options
ARGS_FAST_GCC_TARGET(ARGS_FAST_TARGET)
#endif

#include "vectors.h"
#include "elements.h"
#include "caches.h"
#ifdef ARGS_FAST_AMX
#include "tiles.h"
#endif
#include "attention_blocks.h"
#include "attention_split.h"
#ifdef ARGS_FAST_AMX
#include "attention_tiles.h"
#endif
#include "branch_attention.h"
#include "packed_rows.h"
#include "linear_columns.h"
#ifdef ARGS_FAST_AMX
#include "linear_tiles.h"
#endif
#include "linear.h"
#include "row_functions.h"
#include "decoder_layers.h"
#include "topk_logprobs.h"
#include "select.h"

namespace args_fast::ARGS_FAST_ISA {

extern const Kernels kernels = {attention, decoder_layers, linear, topk_logprobs, select};

}  // namespace args_fast::ARGS_FAST_ISA

#if defined(ARGS_FAST_TARGET) && defined(__clang__)
#pragma clang attribute pop
#elif defined(ARGS_FAST_TARGET)
#pragma GCC pop_options
#endif
