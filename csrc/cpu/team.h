// Threads that work through the same phases together. A phase is a number of units, which whoever is
// free takes one by one; the next phase begins when all units of the last one are done. A thread that
// comes late, or never, costs nothing but its help: the others do its part.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace args_fast {

class Team {
 public:
  // How one thread goes through the phases. Every thread has to call phase() equally often, with the
  // same counts.
  class Member {
   public:
    explicit Member(Team& team) : team_(team) {}

    // Call f(unit) for the units of [0, count) that fall to this thread.
    template <typename F>
    void phase(int64_t count, const F& f) {
      if (count == 0) return;
      for (int64_t unit; (unit = team_.claim(number_, count)) >= 0;) {
        f(unit);
        team_.finish(number_, count);
      }
      ++number_;
    }

   private:
    Team& team_;
    uint32_t number_ = 0;
  };

  // Call f(member) on up to `threads` threads, and return when all phases are done.
  template <typename F>
  static void run(int64_t threads, const F& f) {
    Team team;
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      Member member(team);
      f(member);
    });
  }

 private:
  static constexpr int SPINS = 2000;  // then the core is offered to others

  // A unit of the phase, or -1 when the phase is over.
  int64_t claim(uint32_t number, int64_t count) {
    uint64_t state = state_.load(std::memory_order_acquire);
    for (int spins = 0;;) {
      if (uint32_t(state >> 32) != number) return -1;  // it is a later one
      if (int64_t(uint32_t(state)) < count) {
        if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel))
          return uint32_t(state);
        continue;
      }
      if (++spins < SPINS) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
      state = state_.load(std::memory_order_acquire);
    }
  }

  void finish(uint32_t number, int64_t count) {
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 < count) return;
    done_.store(0, std::memory_order_relaxed);
    state_.store(uint64_t(number + 1) << 32, std::memory_order_release);
  }

  std::atomic<uint64_t> state_{0};  // number of the phase, and in the lower half its next unit
  std::atomic<int64_t> done_{0};    // units of the phase
};

}  // namespace args_fast
