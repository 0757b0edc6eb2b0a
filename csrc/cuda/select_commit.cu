// The tail of a step in one launch: the candidate that ARGS takes (eq. 2 of the paper and, with Gumbel
// noise, eq. 3), and its rows written after the prefix in every layer of the reward model's cache.
//
//   reward[c] = hidden[b, c] . head_weight + head_bias
//   score[c]  = logprobs[b, c] + w[b] * reward[c]
//   branch[b] = the first c with the highest score[c] / temperature[b] + noise[b, c]
//   {k,v}_pages[l, page, lengths[b] % page_size] = tail_{k,v}[l, b, branch[b]]  for every layer l,
//       page = page_table[b, lengths[b] / page_size];  then lengths[b] += 1
//
// Where a reward is not finite or a logprob is NaN the row's score is NaN and its branch 0; its reward
// is NaN exactly when a reward was at fault. A length or a page that lies outside the cache writes
// nothing and makes the score NaN; the contract of the op has no such thing.
//
// hidden [B, k, H] f32, bf16 or f16; head_weight [H] of the same type or f32; tail [L, B, N, row] and
// pages [L, pages, page_size, row] of any type, moved as bytes; branch [B] i64, reward, score [B] f32.
//
// Several blocks share the copies of a sequence. Each of them computes the choice for itself, always
// in the same order and so with the same bits: that reads the hidden states once per block, all but
// the first time from the second level of cache, and spares the wait of one block for another, which
// at this size costs more and could deadlock. The last block to finish advances the length, when all
// have read it.
//
// Floor: B * k * H * itemsize bytes read, and 2 * B * L * row bytes read and written. At k = 10 that is
// 82 KB and 0.26 MB for one sequence of a classifier with H = 4096, L = 32 and rows of 2 KB (8 heads of
// 128 in 16 bits), a tenth of a microsecond of an H100's memory: launch and latency are the cost.

#include "device.cuh"
#include "kernels.h"

#include <initializer_list>

namespace args_fast::cuda {
namespace {

// Tuning: not measured. 16 warps score 10 candidates at once and 128 in eight rounds. A sequence gets
// as many blocks as there is work for, until the device has two of them per multiprocessor.
constexpr int THREADS = 512;
constexpr int COPIES = 2;  // units of 16 bytes for a thread, before another block is worth it
constexpr int BLOCKS_PER_MULTIPROCESSOR = 2;

constexpr int WARPS = THREADS / WARP;
constexpr int PER_LANE = SELECT_MOST / WARP;
static_assert(SELECT_MOST % WARP == 0);

__device__ unsigned tickets[TICKETS];

struct Wide {  // the unit of an aligned copy
  alignas(16) uint32_t part[4];
};

__device__ inline float not_a_number() { return __uint_as_float(0x7FC00000u); }

__device__ inline float read(const void* from, Type type) {
  switch (type) {
    case Type::f32: return *static_cast<const float*>(from);
    case Type::bf16: return to_float(*static_cast<const BFloat16*>(from));
    default: return to_float(*static_cast<const Half*>(from));
  }
}

template <typename T, typename W>
__device__ inline float dot_eight(const T (&hidden)[EIGHT], const W (&weight)[EIGHT], float sum) {
#pragma unroll
  for (int i = 0; i < EIGHT; ++i) sum = fmaf(to_float(hidden[i]), to_float(weight[i]), sum);
  return sum;
}

// One warp, every lane with the result. Both ways add the same terms in the same order.
template <typename T, typename W>
__device__ inline float dot(const T* hidden, const W* weight, int H, bool aligned) {
  constexpr int STEP = WARP * EIGHT;
  constexpr int BATCH = 16 / (sizeof(T) + sizeof(W));  // steps whose loads are on their way at once
  int at = threadIdx.x % WARP * EIGHT;
  float sum = 0.0f;
  if (aligned) {
    T h[BATCH][EIGHT];
    W v[BATCH][EIGHT];
    for (; at + (BATCH - 1) * STEP + EIGHT <= H; at += BATCH * STEP) {
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        load_aligned(hidden + at + i * STEP, h[i]);
        load_aligned(weight + at + i * STEP, v[i]);
      }
#pragma unroll
      for (int i = 0; i < BATCH; ++i) sum = dot_eight(h[i], v[i], sum);
    }
  }
  for (; at < H; at += STEP) {
    T h[EIGHT];
    W v[EIGHT];
    load_eight(hidden, at, H, aligned, T{}, h);
    load_eight(weight, at, H, aligned, W{}, v);
    sum = dot_eight(h, v, sum);
  }
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL, sum, offset);
  return sum;
}

struct Shared {
  float reward[SELECT_MOST];
  int branch;
  int length, page, at;  // at: the row of the page; page -1: nowhere to write
};

// Whether candidate a goes before b: the higher value, a NaN above all, then the lower index.
__device__ inline bool before(float a, int i, float b, int j) {
  if (isnan(a) || isnan(b)) return isnan(a) && (!isnan(b) || i < j);
  return a > b || (a == b && i < j);
}

// What the choice needs apart from the rewards: loaded by one warp while the others wait for theirs.
struct Terms {
  float w, temperature, logprob[PER_LANE], noise[PER_LANE];

  __device__ void load(const SelectCommit& call, int64_t b) {
    w = call.w[b];
    temperature = call.temperature[b];
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
      const int c = i * WARP + threadIdx.x % WARP;
      logprob[i] = c < call.k ? call.logprobs[b * call.logprobs_stride + c] : 0.0f;
      noise[i] = c < call.k ? call.noise[b * call.noise_stride + c] : 0.0f;
    }
  }
};

// One warp: the choice among the rewards, which the first block of a sequence also writes out.
__device__ inline int choose(
    const SelectCommit& call, int64_t b, const Shared& shared, const Terms& terms) {
  const int lane = threadIdx.x % WARP, k = call.k;
  bool bad_reward = false, bad_logprob = false;
  float best = 0.0f, best_score = 0.0f;
  int branch = SELECT_MOST;  // none yet
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const int c = i * WARP + lane;
    if (c >= k) continue;
    const float reward = shared.reward[c];
    bad_reward |= !isfinite(reward);
    bad_logprob |= isnan(terms.logprob[i]);
    // Rounded one by one, as the plain implementation does: a fused one breaks ties differently.
    const float score = __fadd_rn(terms.logprob[i], __fmul_rn(terms.w, reward));
    const float value = __fadd_rn(__fdiv_rn(score, terms.temperature), terms.noise[i]);
    if (branch == SELECT_MOST || before(value, c, best, branch)) {
      best = value;
      best_score = score;
      branch = c;
    }
  }
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(ALL, best, offset);
    const float other_score = __shfl_xor_sync(ALL, best_score, offset);
    const int index = __shfl_xor_sync(ALL, branch, offset);
    if (index != SELECT_MOST && (branch == SELECT_MOST || before(other, index, best, branch))) {
      best = other;
      best_score = other_score;
      branch = index;
    }
  }
  bad_reward = __any_sync(ALL, bad_reward);
  const bool broken = __any_sync(ALL, bad_logprob) || bad_reward;
  if (broken) branch = 0;
  if (blockIdx.x == 0 && lane == 0) {
    call.branch[b] = branch;
    call.reward[b] = bad_reward ? not_a_number() : shared.reward[branch];
    call.score[b] = broken || shared.page < 0 ? not_a_number() : best_score;
  }
  return branch;
}

// This block's share of the rows of all layers, a unit at a time.
template <typename Unit>
__device__ inline void copy(const SelectCommit& call, int64_t b, const Shared& shared) {
  const unsigned units = call.row / sizeof(Unit), total = 2 * call.L * units;
  for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < total; i += gridDim.x * THREADS) {
    const unsigned row = i / units, unit = i - row * units;
    const int64_t layer = row / 2;
    const bool key = row % 2 == 0;
    const auto& from_stride = key ? call.tail_k_stride : call.tail_v_stride;
    const auto& to_stride = key ? call.k_page_stride : call.v_page_stride;
    const char* from = static_cast<const char*>(key ? call.tail_k : call.tail_v) +
                       layer * from_stride[0] + b * from_stride[1] + shared.branch * from_stride[2];
    char* to = static_cast<char*>(key ? call.k_pages : call.v_pages) + layer * to_stride[0] +
               shared.page * to_stride[1] + shared.at * to_stride[2];
    reinterpret_cast<Unit*>(to)[unit] = reinterpret_cast<const Unit*>(from)[unit];
  }
}

struct Arguments {
  SelectCommit call;
  bool aligned, wide;
};

template <typename T, typename W>
__global__ void __launch_bounds__(THREADS) select_commit_kernel(const Arguments arguments) {
  __shared__ Shared shared;
  const SelectCommit& call = arguments.call;
  const int64_t b = blockIdx.y;
  const int warp = threadIdx.x / WARP, k = call.k;

  if (threadIdx.x == 0) {
    const int length = call.lengths[b];
    shared.length = length;
    shared.page = -1;
    if (length >= 0 && length < call.P * call.page_size) {
      const int page = call.page_table[b * call.table_stride + length / call.page_size];
      if (page >= 0 && page < call.pages) shared.page = page;
      shared.at = length % call.page_size;
    }
  }
  Terms terms;
  if (warp == 0) terms.load(call, b);
  const float bias = call.bias == nullptr ? 0.0f : read(call.bias, call.bias_type);
  const T* hidden = static_cast<const T*>(call.hidden) + b * call.hidden_stride[0];
  for (int c = warp; c < k; c += WARPS) {
    const float reward =
        dot(hidden + c * call.hidden_stride[1], static_cast<const W*>(call.weight), int(call.H),
            arguments.aligned);
    if (threadIdx.x % WARP == 0) shared.reward[c] = reward + bias;
  }
  __syncthreads();
  if (warp == 0) {
    const int branch = choose(call, b, shared, terms);
    if (threadIdx.x == 0) shared.branch = branch;
  }
  __syncthreads();

  if (shared.page >= 0) {
    if (arguments.wide)
      copy<Wide>(call, b, shared);
    else
      copy<uint16_t>(call, b, shared);
  }
  if (!last_block(&tickets[call.ticket + b], gridDim.x)) return;
  if (threadIdx.x == 0) call.lengths[b] = shared.length + 1;
}

}  // namespace

cudaError_t launch_select_commit(const SelectCommit& call, cudaStream_t stream) {
  const int64_t itemsize = call.type == Type::f32 ? 4 : 2;
  bool wide = call.row % 16 == 0 && aligned_to(call.tail_k, 16) && aligned_to(call.tail_v, 16) &&
              aligned_to(call.k_pages, 16) && aligned_to(call.v_pages, 16);
  for (const auto* strides :
       {&call.tail_k_stride, &call.tail_v_stride, &call.k_page_stride, &call.v_page_stride})
    for (const int64_t stride : *strides) wide = wide && stride % 16 == 0;
  const Arguments arguments{
      call,
      aligned_to(call.hidden, 16) && call.hidden_stride[0] * itemsize % 16 == 0 &&
          call.hidden_stride[1] * itemsize % 16 == 0 && aligned_to(call.weight, 16),
      wide};

  const int64_t units = 2 * call.L * call.row / (wide ? sizeof(Wide) : sizeof(uint16_t));
  const int64_t useful = (units + THREADS * COPIES - 1) / (THREADS * COPIES);
  const int64_t room = call.multiprocessors * BLOCKS_PER_MULTIPROCESSOR / call.B;
  const int64_t blocks = useful < 1 || room < 1 ? 1 : useful < room ? useful : room;
  const dim3 grid(blocks, call.B);
  const bool mixed = call.weight_type != call.type;
  switch (call.type) {
    case Type::f32:
      return launch(select_commit_kernel<float, float>, arguments, grid, THREADS, stream);
    case Type::bf16:
      return mixed
                 ? launch(select_commit_kernel<BFloat16, float>, arguments, grid, THREADS, stream)
                 : launch(
                       select_commit_kernel<BFloat16, BFloat16>, arguments, grid, THREADS, stream);
    default:
      return mixed ? launch(select_commit_kernel<Half, float>, arguments, grid, THREADS, stream)
                   : launch(select_commit_kernel<Half, Half>, arguments, grid, THREADS, stream);
  }
}

}  // namespace args_fast::cuda
