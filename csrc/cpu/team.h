// Threads that work through the same phases together. A phase has a part for each thread, which takes its
// own first and then those of threads that have not come yet; the next phase begins when all parts of
// the last one are done. A thread that comes late, or never, costs nothing but its help.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace args_fast {

class Team {
 public:
  // How one thread goes through the phases. Every thread has to call parts() in the same order, with the
  // same counts.
  class Member {
   public:
    Member(Team& team, int64_t index) : team_(team), index_(index) {}

    // Call f(begin, end) for parts of [0, count), one for each thread, that are multiples of `least`.
    template <typename F>
    void parts(int64_t count, const F& f, int64_t least = 1) {
      if (count == 0) return;
      const int64_t threads = team_.threads_, equal = (count + threads - 1) / threads;
      const int64_t size = (equal + least - 1) / least * least, number = (count + size - 1) / size;
      for (int64_t part; (part = team_.claim_own(number_, index_, number)) >= 0;) {
        f(part * size, std::min(count, (part + 1) * size));
        team_.finish(number_, number);
      }
      ++number_;
    }

   private:
    Team& team_;
    const int64_t index_;  // of the thread
    uint32_t number_ = 0;
  };

  // Call f(member) on up to `threads` threads, and return when all phases are done.
  template <typename F>
  static void run(int64_t threads, const F& f) {
    Team team(threads);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t index, int64_t) {
      Member member(team, index);
      f(member);
    });
  }

 private:
  explicit Team(int64_t threads)
      : threads_(threads), taken_(new std::atomic<uint32_t>[threads]()) {}

  static constexpr int SPINS = 2000;  // then the core is offered to others

  // Until the phase is over.
  void wait(uint32_t number) const {
    for (int spins = 0; phase_.load(std::memory_order_acquire) == number;) {
      if (++spins < SPINS) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

  // A part of a phase that has `count` of them, no more than there are threads, beginning with the
  // thread's own; -1 when the phase is over.
  int64_t claim_own(uint32_t number, int64_t index, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t part = (index + i) % count;
      uint32_t last = taken_[part].load(std::memory_order_relaxed);
      if (last <= number && taken_[part].compare_exchange_strong(last, number + 1)) return part;
    }
    wait(number);
    return -1;
  }

  void finish(uint32_t number, int64_t count) {
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 < count) return;
    done_.store(0, std::memory_order_relaxed);
    phase_.store(number + 1, std::memory_order_release);
  }

  const int64_t threads_;
  const std::unique_ptr<std::atomic<uint32_t>[]> taken_;  // of each part: the last phase, plus 1
  std::atomic<uint32_t> phase_{0};
  std::atomic<int64_t> done_{0};  // parts of the phase
};

}  // namespace args_fast
