// The k most likely tokens of each row and their log-softmax over the whole vocabulary, in one launch.
//
//   logprobs[b, i] = logits[b, ids[b, i]] - log sum_v exp(logits[b, v])
//
// logits [B, V] f32, bf16 or f16 -> logprobs [B, k] f32, descending, ids [B, k] i64; equal logits in
// the order of their ids, -0.0 equal to 0.0, -inf an ordinary logit. A row without a distribution (a
// NaN, a +inf, nothing above -inf) gets NaN and the ids 0 ... k-1.
//
// A row is cut into chunks, one per block. A block reads its chunk once: every thread keeps a running
// maximum and sum of exponentials, and every logit that may be among the best k goes to a buffer in
// shared memory as one integer key that orders by (logit descending, id ascending). When the buffer
// is too full for another tile, a radix selection leaves the best k in it, and its threshold turns
// away what comes later: after n logits in no special order that is all but k / n of them. The last
// block of a row to finish passes the winners of all chunks through the same buffer, sorts them and
// writes.
//
// Floor: B * V * itemsize bytes, read once (257 KB for one row of 128,256 in 16 bits, a tenth of a
// microsecond of an H100's memory, so a single row costs the latency of one load, of two selections
// and of the ticket between them). Written and read again: 8 * k bytes per chunk.
//
// The chunks depend on V alone, so a row has the same bits alone and in any batch.

#include "device.cuh"
#include "kernels.h"

namespace args_fast::cuda {
namespace {

// Tuning: not measured. With 64 chunks a block has one tile up to V = 131,072: smaller ones would leave
// the last block more to merge, and larger ones fewer blocks for a single row. The buffer takes a tile
// beside half a tile of earlier keys; one of 26 KB leaves room for four blocks per multiprocessor.
constexpr int THREADS = 256;
constexpr int BLOCKS = 4;  // per multiprocessor at least: bounds the registers
constexpr int CHUNKS = 64;
constexpr int TILE = THREADS * EIGHT;
constexpr int CAPACITY = TILE + TILE / 2;

constexpr int WARPS = THREADS / WARP;
constexpr int OWN = CAPACITY / THREADS;  // keys that a thread holds during a selection
constexpr int BINS = 256;                // of a radix pass, one per thread
static_assert(BINS == THREADS && CAPACITY % THREADS == 0 && TOPK_MOST <= CAPACITY - TILE);
static_assert(TOPK_MOST <= THREADS && CHUNKS <= THREADS);

using Key = unsigned long long;  // monotone logit << 32 | V - 1 - id; 0 stands for no key

__device__ unsigned tickets[TICKETS];

// The bits of a logit as an unsigned integer of the same order. -0.0 becomes 0.0 first.
template <typename T>
struct Order;

template <>
struct Order<float> {
  static constexpr int BITS = 32;
  __device__ static uint32_t of(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (bits << 1 == 0) return 0x80000000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  __device__ static float back(uint32_t order) {
    return __uint_as_float(order >> 31 ? order & 0x7FFFFFFFu : ~order);
  }
};

template <typename T>
struct Order16 {
  static constexpr int BITS = 16;
  __device__ static uint32_t of(T x) {
    const uint32_t bits = x.bits;
    if ((bits & 0x7FFFu) == 0) return 0x8000u;
    return bits >> 15 ? bits ^ 0xFFFFu : bits | 0x8000u;
  }
  __device__ static float back(uint32_t order) {
    return to_float(T{uint16_t(order >> 15 ? order & 0x7FFFu : order ^ 0xFFFFu)});
  }
};
template <>
struct Order<BFloat16> : Order16<BFloat16> {};
template <>
struct Order<Half> : Order16<Half> {};

__device__ inline float minus_infinity() { return __uint_as_float(0xFF800000u); }

// sum = sum of exp(x - highest) over the logits seen so far. A NaN or a +inf makes the sum NaN for
// good; while nothing is above -inf the sum is 0.
struct Normaliser {
  float highest, sum;
};

__device__ inline float exponential(float x) { return exp2f(x * 1.44269504088896341f); }

__device__ inline float base_of(float highest) {
  return highest == minus_infinity() ? 0.0f : highest;  // -inf - -inf would be NaN
}

__device__ inline Normaliser merged(Normaliser a, Normaliser b) {
  const float highest = fmaxf(a.highest, b.highest), base = base_of(highest);
  return {highest, a.sum * exponential(a.highest - base) + b.sum * exponential(b.highest - base)};
}

__device__ inline Normaliser merged_over_warp(Normaliser own) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    const Normaliser other{
        __shfl_xor_sync(ALL, own.highest, offset), __shfl_xor_sync(ALL, own.sum, offset)};
    own = merged(own, other);
  }
  return own;
}

struct Shared {
  Key keys[CAPACITY];
  int bins[BINS];
  int warp_totals[WARPS];
  Normaliser normalisers[WARPS];
  int count;                  // of keys
  int digit, before, inside;  // of a radix pass
};

// Over the whole block: put the keys that a thread wants to (bit i of `wanted`: key[i]) after those
// in the buffer. Returns the keys in the buffer after this thread's warp.
template <int N>
__device__ inline int append(Shared& shared, const Key (&key)[N], unsigned wanted) {
  const int lane = threadIdx.x % WARP;
  if (__ballot_sync(ALL, wanted != 0) == 0) return 0;
  const int mine = __popc(wanted);
  int upto = mine;  // keys of this lane and those before it
#pragma unroll
  for (int offset = 1; offset < WARP; offset *= 2) {
    const int other = __shfl_up_sync(ALL, upto, offset);
    if (lane >= offset) upto += other;
  }
  int first = 0;
  if (lane == WARP - 1) first = atomicAdd(&shared.count, upto);
  first = __shfl_sync(ALL, first, WARP - 1);
  int at = first + upto - mine;
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (wanted >> i & 1) shared.keys[at++] = key[i];
  return first + __shfl_sync(ALL, upto, WARP - 1);
}

// Leave the best k of the keys in the buffer, in no order. Returns a threshold: no key below it can
// be among the best k any more. `bits` of the logit and of the id can differ between keys. Called by
// the whole block, with the buffer complete; count and keys are complete when it returns.
__device__ inline Key keep_best(Shared& shared, int k, int logit_bits, int id_bits, Key threshold) {
  const int count = shared.count, thread = threadIdx.x, lane = thread % WARP;
  if (count <= k) return threshold;
  Key own[OWN];
  unsigned live = 0;  // bit i: own[i] agrees with the prefix found so far
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int at = i * THREADS + thread;
    own[i] = at < count ? shared.keys[at] : 0;
    live |= unsigned(at < count) << i;
  }

  Key prefix = 0;
  int wanted = k;  // keys still to be found among the live ones
  shared.bins[thread] = 0;
  __syncthreads();
  for (int shift = 32 + logit_bits - 8; shift >= 0; shift -= 8) {
    if (shift < 32 && shift >= id_bits) continue;  // zeros in every key
#pragma unroll
    for (int i = 0; i < OWN; ++i)
      if (live >> i & 1) atomicAdd(&shared.bins[own[i] >> shift & (BINS - 1)], 1);
    __syncthreads();

    // Thread i looks after the i-th bin from above: how many keys lie in it and above it?
    const int bin = BINS - 1 - thread, mine = shared.bins[bin];
    int upto = mine;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
      const int other = __shfl_up_sync(ALL, upto, offset);
      if (lane >= offset) upto += other;
    }
    if (lane == WARP - 1) shared.warp_totals[thread / WARP] = upto;
    __syncthreads();
    for (int warp = 0; warp < thread / WARP; ++warp) upto += shared.warp_totals[warp];
    if (upto >= wanted && upto - mine < wanted) {  // one thread: the k-th key is in its bin
      shared.digit = bin;
      shared.before = upto - mine;
      shared.inside = mine;
    }
    shared.bins[bin] = 0;
    __syncthreads();

    const Key digit = shared.digit;
    const int inside = shared.inside;
    prefix |= digit << shift;
    wanted -= shared.before;
#pragma unroll
    for (int i = 0; i < OWN; ++i)
      if ((own[i] >> shift & (BINS - 1)) != digit) live &= ~(1u << i);
    if (inside == wanted) break;  // the whole bin is among the best
  }

  // Every thread has read the count and the last digit, and all keys are in registers.
  if (thread == 0) shared.count = 0;
  __syncthreads();
  unsigned best = 0;
#pragma unroll
  for (int i = 0; i < OWN; ++i)
    best |= unsigned(own[i] >= prefix && i * THREADS + thread < count) << i;
  append(shared, own, best);
  __syncthreads();
  return prefix > threshold ? prefix : threshold;
}

// Take in eight keys of every thread, 0 for none. Returns the threshold, raised or not.
__device__ inline Key take(
    Shared& shared, const Key (&key)[EIGHT], int k, int logit_bits, int id_bits, Key threshold) {
  unsigned wanted = 0;
#pragma unroll
  for (int i = 0; i < EIGHT; ++i) wanted |= unsigned(key[i] >= threshold) << i;
  const int end = append(shared, key, wanted);
  // The barrier agrees on one answer while the count may already be moving on.
  if (__syncthreads_or(end > CAPACITY - TILE))
    threshold = keep_best(shared, k, logit_bits, id_bits, threshold);
  return threshold;
}

struct Arguments {
  const void* logits;
  float* logprobs;
  int64_t* ids;
  Key* keys;                // [B, chunks, k], each chunk's best, filled up with 0
  Normaliser* normalisers;  // [B, chunks]
  int64_t stride, ticket;
  int V, k, chunk, id_bits;
};

template <typename T>
__global__ void __launch_bounds__(THREADS, BLOCKS) topk_kernel(const Arguments call) {
  __shared__ Shared shared;
  const int chunks = gridDim.x, chunk = blockIdx.x, thread = threadIdx.x;
  const int lane = thread % WARP, warp = thread / WARP, V = call.V, k = call.k;
  const int64_t b = blockIdx.y;
  const T* row = static_cast<const T*>(call.logits) + b * call.stride;
  const bool aligned = aligned_to(row, 16);
  constexpr int BITS = Order<T>::BITS;

  if (thread == 0) shared.count = 0;
  __syncthreads();

  const int begin = chunk * call.chunk, end = min(begin + call.chunk, V);
  Key threshold = 1;
  Normaliser own{minus_infinity(), 0.0f};
  const T filler{};
  T logit[EIGHT], next[EIGHT];
  load_eight(row, begin + thread * EIGHT, end, aligned, filler, next);
  for (int tile = begin; tile < end; tile += TILE) {
    const int first = tile + thread * EIGHT;
#pragma unroll
    for (int i = 0; i < EIGHT; ++i) logit[i] = next[i];
    load_eight(row, first + TILE, end, aligned, filler, next);  // on its way during the work below

    Key key[EIGHT];
    float x[EIGHT];
    float highest = own.highest;
#pragma unroll
    for (int i = 0; i < EIGHT; ++i) {
      const bool there = first + i < end;
      x[i] = there ? to_float(logit[i]) : minus_infinity();
      key[i] = there ? Key(Order<T>::of(logit[i])) << 32 | unsigned(V - 1 - (first + i)) : 0;
      highest = fmaxf(highest, x[i]);
    }
    const float base = base_of(highest);
    own.sum *= exponential(own.highest - base);
#pragma unroll
    for (int i = 0; i < EIGHT; ++i) own.sum += exponential(x[i] - base);
    own.highest = highest;

    threshold = take(shared, key, k, BITS, call.id_bits, threshold);
  }

  own = merged_over_warp(own);
  if (lane == 0) shared.normalisers[warp] = own;
  __syncthreads();
  keep_best(shared, k, BITS, call.id_bits, threshold);
  Normaliser all = shared.normalisers[0];
#pragma unroll
  for (int i = 1; i < WARPS; ++i) all = merged(all, shared.normalisers[i]);

  if (chunks > 1) {
    Key* const keys = call.keys + b * chunks * k;
    Normaliser* const normalisers = call.normalisers + b * chunks;
    if (thread < k) keys[chunk * k + thread] = thread < shared.count ? shared.keys[thread] : 0;
    if (thread == 0) normalisers[chunk] = all;
    if (!last_block(&tickets[call.ticket + b], chunks)) return;

    if (thread == 0) shared.count = 0;
    __syncthreads();
    threshold = 1;
    for (int tile = 0; tile < chunks * k; tile += TILE) {
      Key key[EIGHT];
#pragma unroll
      for (int i = 0; i < EIGHT; ++i) {
        const int at = tile + i * THREADS + thread;
        key[i] = at < chunks * k ? __ldcg(&keys[at]) : 0;
      }
      threshold = take(shared, key, k, BITS, call.id_bits, threshold);
    }
    keep_best(shared, k, BITS, call.id_bits, threshold);
    all = {minus_infinity(), 0.0f};
    for (int i = 0; i < chunks; ++i)
      all = merged(all, {__ldcg(&normalisers[i].highest), __ldcg(&normalisers[i].sum)});
  }

  const float normaliser = all.highest + logf(all.sum);
  const bool broken = !isfinite(normaliser);
  float* const logprobs = call.logprobs + b * k;
  int64_t* const ids = call.ids + b * k;
  if (thread < k && broken) {
    logprobs[thread] = __uint_as_float(0x7FC00000u);
    ids[thread] = thread;
  }
  if (thread < k && !broken) {  // then there are k keys, all different
    const Key mine = shared.keys[thread];
    int rank = 0;
    for (int i = 0; i < k; ++i) rank += shared.keys[i] > mine;
    logprobs[rank] = Order<T>::back(uint32_t(mine >> 32)) - normaliser;
    ids[rank] = V - 1 - int64_t(uint32_t(mine));
  }
}

struct Split {
  int64_t chunk, chunks;
};

Split split_of(int64_t V) {
  const int64_t tiles = (V + TILE - 1) / TILE;
  const int64_t chunk = (tiles + CHUNKS - 1) / CHUNKS * TILE;
  return {chunk, (V + chunk - 1) / chunk};
}

}  // namespace

int64_t topk_scratch(int64_t B, int64_t V, int64_t k) {
  const int64_t chunks = split_of(V).chunks;
  return chunks > 1 ? B * chunks * (k + 1) : 0;
}

cudaError_t launch_topk_logprobs(const TopK& call, cudaStream_t stream) {
  static_assert(sizeof(Key) == 8 && sizeof(Normaliser) == 8);
  const auto [chunk, chunks] = split_of(call.V);
  int id_bits = 0;
  while (id_bits < 32 && (call.V - 1) >> id_bits != 0) ++id_bits;
  const Arguments arguments{
      call.logits,
      call.logprobs,
      call.ids,
      reinterpret_cast<Key*>(call.scratch),
      reinterpret_cast<Normaliser*>(call.scratch + call.B * chunks * call.k),
      call.stride,
      call.ticket,
      int(call.V),
      int(call.k),
      int(chunk),
      id_bits};
  const dim3 grid(chunks, call.B);
  switch (call.type) {
    case Type::f32: return launch(topk_kernel<float>, arguments, grid, THREADS, stream);
    case Type::bf16: return launch(topk_kernel<BFloat16>, arguments, grid, THREADS, stream);
    default: return launch(topk_kernel<Half>, arguments, grid, THREADS, stream);
  }
}

}  // namespace args_fast::cuda
