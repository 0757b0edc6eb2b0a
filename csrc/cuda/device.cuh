// What the kernels share: 16-bit types, vectors of eight, sums in a fixed order, the last block.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace args_fast::cuda {

constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFFu;

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ inline float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }

constexpr int EIGHT = 8;  // elements that a thread reads at a time

template <typename T>
struct alignas(16) Vector {
  T at[16 / sizeof(T)];
};

// Elements [0, 8) of `from` with 16-byte loads: `from` must be aligned to them.
template <typename T>
__device__ inline void load_aligned(const T* from, T (&to)[EIGHT]) {
  constexpr int WIDTH = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < EIGHT / WIDTH; ++i) {
    const Vector<T> vector = reinterpret_cast<const Vector<T>*>(from)[i];
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) to[i * WIDTH + j] = vector.at[j];
  }
}

// Elements [begin, begin + 8) of `from`, as far as they lie before `end`; `filler` after it. Which
// thread reads which element does not depend on the alignment, and so neither do sums over them.
template <typename T>
__device__ inline void load_eight(
    const T* from, int begin, int end, bool aligned, T filler, T (&to)[EIGHT]) {
  if (aligned && begin + EIGHT <= end) {
    load_aligned(from + begin, to);
  } else {
#pragma unroll
    for (int i = 0; i < EIGHT; ++i) to[i] = begin + i < end ? from[begin + i] : filler;
  }
}

__host__ __device__ inline bool aligned_to(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Whether this block is the last one of `count` to come here. What the others wrote before can then
// be read, past the first level of cache (__ldcg). Resets the ticket for the next launch.
__device__ inline bool last_block(unsigned* ticket, unsigned count) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == count - 1;
    if (last) *ticket = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// One launch in the usual way; the error is returned, and is not left behind for someone else.
template <typename Call>
cudaError_t launch(
    void (*kernel)(Call), const Call& call, dim3 grid, unsigned threads, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, call);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace args_fast::cuda
