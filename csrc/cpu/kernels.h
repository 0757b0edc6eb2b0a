// The ops on raw memory. Every function is compiled once per instruction set (kernels_*.cpp),
// and ops.cpp takes the best one that the processor has.
#pragma once

#include "../types.h"

// Whether the compiler knows tiles, GCC or clang, and the system can be asked for them.
#if defined(__x86_64__) && defined(__linux__)
#if __has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>)
#define ARGS_FAST_HAS_AMX
#endif
#endif

namespace args_fast {

// Strides are in elements; the last dimension of every tensor is contiguous.
struct Attention {
  Type type;
  const void* q;       // [B, N, Hq, D]
  const void* tail_k;  // [B, N, Hkv, D]
  const void* tail_v;
  const void* k_pages;  // [pages, page_size, Hkv, D]
  const void* v_pages;
  const int32_t* page_table;  // [B, P]
  const int32_t* lengths;     // [B]
  const bool* mask;           // [N, N]; or null, of a prompt: a row sees those before it
  const float* sinks;         // [Hq], or null
  void* out;                  // [B, N, Hq, D], contiguous
  int64_t B, N, Hq, Hkv, D, page_size;
  int64_t q_stride[3], tail_k_stride[3], tail_v_stride[3], k_page_stride[3], v_page_stride[3];
  int64_t table_stride;
  float scale, softcap;
  int64_t window;
};

enum class Activation : int32_t { silu, relu, gelu, gelu_tanh };

struct Norm {
  const void* weight;  // null: none
  const void* bias;    // null: none
};

// How the matrices of a model lie.
enum class Storage : int32_t {
  rows,     // [N, K], of the type of everything else
  columns,  // [K, N], likewise
  int8,     // [N, K] integers, and a scale for each row
  // [N, K] of 16 bits, where everything else is float32.
  bfloat16,
  float16,
};

// What an adapter adds to the product of x with a matrix: (x · aᵀ) · b + bias.
struct LowRank {
  const void* a;      // [rank, K], of the type of everything else
  const float* b;     // [rank, rows]
  const float* bias;  // [rows], or null
  int64_t rank, stride;
};

struct Matrix {
  const void* weight;  // null: none
  const float* scale;  // [rows], of integers
  const void* bias;    // [rows], or null
  int64_t rows, stride;
  LowRank added;
};

struct DecoderLayer {
  Norm norm1, norm2, q_norm, k_norm;
  Matrix q, k, v, o, gate, up, down;
  float scale;     // of the attention
  int64_t window;  // 0: none
};

// What a model's rows read and write, of the first layer; query, result, scale and window are not
// used. The tail is written.
struct Reader {
  Attention attention;
  struct {
    int64_t tail_k, tail_v, k_pages, v_pages;
  } layer_stride;
};

struct DecoderLayers {
  // One, or two: then the terms of an adapter are those of the second one's rows alone. Both have the
  // same sizes and prefixes, and caches of their own. All weights but the matrices are of their type.
  Reader readers[2];
  int64_t reader_count;
  const DecoderLayer* layers;  // [L]
  float* hidden;               // [readers, B, N, H], in and out
  const float* cos;            // [B, N, rotary], or null: no rotary positions
  const float* sin;
  int64_t L, H, F, rotary;
  Storage storage;
  bool rms, pre_norm, has_final_norm;
  Norm final_norm;
  float eps;
  Activation activation;
};

struct Linear {
  Type type;           // of all but the weights
  Storage storage;     // of these; not columns
  const void* x;       // [M, K]
  const void* weight;  // [N, K]
  const float* scale;  // [N], of integers; else null
  const void* bias;    // [N], or null
  void* out;           // [M, N], contiguous
  int64_t M, N, K, x_stride, weight_stride;
};

struct TopK {
  Type type;
  const void* logits;  // [B, V]
  float* logprobs;     // [B, k]
  int64_t* ids;        // [B, k]
  int64_t B, V, k, stride;
};

struct Select {
  Type type;            // of hidden
  const void* hidden;   // [B, k, H]
  const float* weight;  // [H]
  float bias;
  const float* logprobs;     // [B, k]
  const float* w;            // [B]
  const float* temperature;  // [B]
  const float* noise;        // [B, k]
  int64_t* branch;           // [B]
  float* reward;
  float* score;
  int64_t B, k, H;
  int64_t hidden_stride[2], noise_stride;
};

struct Kernels {
  void (*attention)(const Attention&);
  void (*decoder_layers)(const DecoderLayers&);
  void (*linear)(const Linear&);
  void (*topk_logprobs)(const TopK&);
  void (*select)(const Select&);
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}

}  // namespace args_fast
