// Every kernel, for the instruction set that the including file has switched on.
#include "vectors.h"
#include "elements.h"
#include "attention_blocks.h"
#include "attention_split.h"
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
