// The CUDA ops on raw device memory, as ops.cpp launches them. Every launcher makes one launch on the
// given stream, allocates nothing and waits for nothing, so that it can be captured in a CUDA graph.
//
// Tickets are counters that lie in a kernel's own memory and are zero between launches: the blocks of
// a launch draw from them to find out which one of them is the last, and the last one puts them back.
// Launches that may run at the same time must be given tickets apart (tickets.h).
#pragma once

#include "../types.h"

#include <cuda_runtime_api.h>

namespace args_fast::cuda {

constexpr int64_t TICKETS = 1 << 18;  // of each kernel: 1 MB

// Strides are in elements; the last dimension of every tensor is contiguous.
struct TopK {
  Type type;
  const void* logits;  // [B, V]
  float* logprobs;     // [B, k]
  int64_t* ids;        // [B, k]
  int64_t* scratch;    // topk_scratch() words
  int64_t B, V, k, stride;
  int64_t ticket;  // the first of B, used where more than one block works on a row
};

constexpr int64_t TOPK_MOST = 128;         // the largest k
constexpr int64_t TOPK_LONGEST = 1 << 30;  // the largest V

int64_t topk_scratch(int64_t B, int64_t V, int64_t k);  // words of 8 bytes
cudaError_t launch_topk_logprobs(const TopK& call, cudaStream_t stream);

struct SelectCommit {
  Type type, weight_type, bias_type;  // weight_type: the type of hidden, or f32
  const void* hidden;                 // [B, k, H]
  const void* weight;                 // [H]
  const void* bias;                   // [1], or null
  const float* logprobs;              // [B, k]
  const float* w;                     // [B]
  const float* temperature;           // [B]
  const float* noise;                 // [B, k]
  const void* tail_k;                 // [L, B, N, row], N >= k
  const void* tail_v;
  void* k_pages;  // [L, pages, page_size, row]
  void* v_pages;
  const int32_t* page_table;  // [B, P]
  int32_t* lengths;           // [B]
  int64_t* branch;            // [B]
  float* reward;
  float* score;
  int64_t B, k, H, L, P, pages, page_size;
  int64_t row;  // bytes of one row of one layer's keys, Hkv * D elements
  int64_t hidden_stride[2], logprobs_stride, noise_stride, table_stride;
  // In bytes: layer, sequence, tail row; layer, page, row of the page.
  int64_t tail_k_stride[3], tail_v_stride[3], k_page_stride[3], v_page_stride[3];
  int64_t multiprocessors;  // of the device
  int64_t ticket;           // the first of B
};

constexpr int64_t SELECT_MOST = 128;  // the largest k

cudaError_t launch_select_commit(const SelectCommit& call, cudaStream_t stream);

}  // namespace args_fast::cuda
