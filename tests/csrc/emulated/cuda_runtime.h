// CUDA on the CPU, as much of it as csrc/cuda uses, so that g++ compiles the very kernels and a test
// runs them: one fiber per thread of a block, which gives way to the others wherever CUDA's threads
// wait for each other. Between two such places every order of the threads is allowed, and which one it
// is comes from a seed: a missing barrier shows as a wrong answer under some seed. Threads of a warp
// do not run in step, and warps may be far apart. Blocks run one after the other, in an order from the seed; races between blocks
// that run at once are out of its reach. Threads that wait for something that never comes abort.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#define __global__
#define __host__
#define __device__
#define __shared__ static  // of the block that runs, and dirty from the one before
#define __launch_bounds__(...)

using std::isfinite;
using std::isnan;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess };
using cudaStream_t = void*;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) {
  return cudaSuccess;
}

namespace emulated {

using Thread = void (*)(const void* arguments);

void run(dim3 grid, dim3 block, Thread thread, const void* arguments);
void wait_for_block();
void wait_for_warp();
uint64_t* lane_slots();  // one per lane of the running thread's warp
int& block_or();
extern int multiprocessors;

// What `use` makes of the slots into which all lanes of the warp have put theirs.
template <typename T, typename Use>
auto gathered(T mine, Use use) {
  static_assert(sizeof(T) <= 8);
  uint64_t* slots = lane_slots();
  slots[threadIdx.x % 32] = 0;
  __builtin_memcpy(&slots[threadIdx.x % 32], &mine, sizeof mine);
  wait_for_warp();
  const auto got = use(slots);
  wait_for_warp();
  return got;
}

template <typename T>
T exchanged(T mine, int from) {
  return gathered(mine, [=](const uint64_t* slots) {
    T got;
    __builtin_memcpy(&got, &slots[from >= 0 && from < 32 ? from : threadIdx.x % 32], sizeof got);
    return got;
  });
}

}  // namespace emulated

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  unsigned dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulated::multiprocessors;
  return cudaSuccess;
}

template <typename Call>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Call), const Call& call) {
  struct Launch {
    void (*kernel)(Call);
    const Call& call;
  } launch{kernel, call};
  emulated::run(
      config->gridDim, config->blockDim,
      [](const void* it) {
        const auto* launch = static_cast<const Launch*>(it);
        launch->kernel(launch->call);
      },
      &launch);
  return cudaSuccess;
}

inline void __syncthreads() { emulated::wait_for_block(); }
inline int __syncthreads_or(int mine) {
  emulated::wait_for_block();  // the one before has been read
  emulated::block_or() = 0;
  emulated::wait_for_block();
  emulated::block_or() |= mine != 0;
  emulated::wait_for_block();
  return emulated::block_or();
}
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned, T mine, int from) {
  return emulated::exchanged(mine, from);
}
template <typename T>
T __shfl_up_sync(unsigned, T mine, int by) {
  return emulated::exchanged(mine, int(threadIdx.x % 32) - by);
}
template <typename T>
T __shfl_xor_sync(unsigned, T mine, int mask) {
  return emulated::exchanged(mine, int(threadIdx.x % 32) ^ mask);
}
inline unsigned __ballot_sync(unsigned, int mine) {
  return emulated::gathered(mine != 0, [](const uint64_t* slots) {
    unsigned all = 0;
    for (int lane = 0; lane < 32; ++lane) all |= unsigned(slots[lane]) << lane;
    return all;
  });
}
inline int __any_sync(unsigned mask, int mine) { return __ballot_sync(mask, mine) != 0; }

template <typename T>
T atomicAdd(T* at, T more) {
  const T before = *at;
  *at += more;
  return before;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int __popc(unsigned x) { return std::popcount(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
