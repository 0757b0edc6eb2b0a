// Tickets (kernels.h) for launches.
#pragma once

#include "kernels.h"

#include <torch/csrc/stable/ops.h>

#include <bit>
#include <map>
#include <mutex>
#include <utility>

namespace args_fast::cuda {

// Gives tickets (kernels.h) to launches, so that no two that may run at once have the same. Launches
// on one stream follow each other and share theirs. A captured launch may be replayed at any time, but
// never at once with itself: it gets tickets of its own, for good.
class Tickets {
 public:
  int64_t take(int device, cudaStream_t stream, int64_t count) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamIsCapturing(stream, &status);
    STD_TORCH_CHECK(error == cudaSuccess, "args_fast: ", cudaGetErrorString(error));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (status != cudaStreamCaptureStatusNone) return next(count);
    Range& range = of_stream_[{device, stream}];
    if (range.count < count) {  // in doubles: what is given up adds to no more than what is in use
      const int64_t more = std::bit_ceil(uint64_t(count));
      range = {next(more), more};
    }
    return range.first;
  }

 private:
  struct Range {
    int64_t first = 0, count = 0;
  };

  int64_t next(int64_t count) {
    STD_TORCH_CHECK(
        taken_ + count <= TICKETS, "args_fast: ", taken_, " of ", TICKETS,
        " tickets are in captured CUDA graphs; capture fewer, or start a new process");
    taken_ += count;
    return taken_ - count;
  }

  std::mutex mutex_;
  std::map<std::pair<int, cudaStream_t>, Range> of_stream_;
  int64_t taken_ = 0;
};

}  // namespace args_fast::cuda
