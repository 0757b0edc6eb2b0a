// Threads that work through the same phases together. A phase is a number of units, which whoever is
// free takes one by one; the next phase begins when all units of the last one are done. A thread that
// comes late, or never, costs nothing but its help: the others do its part.
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
  // How one thread goes through the phases. Every thread has to call phase() equally often, with the
  // same counts.
  class Member {
   public:
    Member(Team& team, int64_t index) : index(index), team_(team) {}

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

    // The same where there are no more units than threads. Each has one of its own, `index`, and takes
    // another's only if that has not come for it.
    template <typename F>
    void own_phase(int64_t count, const F& f) {
      if (count == 0) return;
      if (count > team_.threads_) return phase(count, f);
      for (int64_t unit; (unit = team_.claim_own(number_, index, count)) >= 0;) {
        f(unit);
        team_.finish(number_, count);
      }
      ++number_;
    }

    // Call f(unit) for the units of [0, count), which are small: threads take equal parts of them.
    template <typename F>
    void shares(int64_t count, const F& f) {
      const int64_t share = (count + team_.threads_ - 1) / team_.threads_;
      own_phase(share == 0 ? 0 : (count + share - 1) / share, [&](int64_t part) {
        for (int64_t unit = part * share; unit < std::min(count, (part + 1) * share); ++unit)
          f(unit);
      });
    }

    const int64_t index;  // of the thread

   private:
    Team& team_;
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

  // A unit of the phase, or -1 when the phase is over.
  int64_t claim(uint32_t number, int64_t count) {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (uint32_t(state >> 32) == number && int64_t(uint32_t(state)) < count)
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel))
        return uint32_t(state);
    wait(number);
    return -1;
  }

  // Until the phase is over.
  void wait(uint32_t number) const {
    for (int spins = 0; uint32_t(state_.load(std::memory_order_acquire) >> 32) == number;) {
      if (++spins < SPINS) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

  // A unit of a phase in which each thread has one; -1 when the phase is over.
  int64_t claim_own(uint32_t number, int64_t index, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      std::atomic<uint32_t>& taken = taken_[(index + i) % count];
      uint32_t last =
          taken.load(std::memory_order_relaxed);  // the phase that it was taken in, plus 1
      if (last <= number && taken.compare_exchange_strong(last, number + 1))
        return (index + i) % count;
    }
    wait(number);
    return -1;
  }

  void finish(uint32_t number, int64_t count) {
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 < count) return;
    done_.store(0, std::memory_order_relaxed);
    state_.store(uint64_t(number + 1) << 32, std::memory_order_release);
  }

  const int64_t threads_;
  const std::unique_ptr<std::atomic<uint32_t>[]> taken_;
  std::atomic<uint64_t> state_{0};  // number of the phase, and in the lower half its next unit
  std::atomic<int64_t> done_{0};    // units of the phase
};

}  // namespace args_fast
