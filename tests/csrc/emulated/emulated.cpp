// The scheduler of cuda_runtime.h.
#include "cuda_runtime.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace emulated {
namespace {

constexpr size_t STACK = 64 << 10;
constexpr int WARP = 32;

struct Group {
  int size = 0, arrived = 0;
  unsigned generation = 0;
};

// Entered by its context, and from then on by jumps, which save no signals and are ten times as fast.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[STACK]};
  bool started = false, done = false;
};

std::mt19937 random_source;
std::vector<Fiber> fibers;
jmp_buf scheduler;
int running;
bool progress;
Group block;
std::vector<Group> warps;
std::vector<uint64_t> slots;
int any;
Thread thread_of_launch;
const void* arguments_of_launch;

void start() {
  thread_of_launch(arguments_of_launch);
  fibers[running].done = true;
  progress = true;
  _longjmp(scheduler, 1);
}

void give_way() {
  if (_setjmp(fibers[running].place) == 0) _longjmp(scheduler, 1);
}

void go_on(int thread) {
  running = thread;
  threadIdx = dim3(thread, 0, 0);
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void wait(Group& group) {
  const unsigned generation = group.generation;
  if (++group.arrived == group.size) {
    group.arrived = 0;
    ++group.generation;
    progress = true;
  }
  // The last one to arrive gives way as well, so that it is not always the first to go on.
  do give_way();
  while (group.generation == generation);
}

// Each of these threads to the next place where it waits, in any order. Drops those that are done.
// Whether a wait has ended or a thread has.
bool pass(std::vector<int>& threads) {
  std::shuffle(threads.begin(), threads.end(), random_source);
  progress = false;
  for (const int thread : threads) go_on(thread);
  std::erase_if(threads, [](int i) { return fibers[i].done; });
  return progress;
}

void run_block(int threads) {
  if (threads % WARP != 0) std::abort();
  if (fibers.size() < size_t(threads)) fibers.resize(threads);
  block = {threads};
  warps.assign(threads / WARP, Group{WARP});
  slots.assign(threads, 0);
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.started = fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  std::vector<int> all(threads);
  std::iota(all.begin(), all.end(), 0);
  while (!all.empty()) {
    bool any_progress = false;
    if (random_source() % 2 == 0) {  // all threads a little further
      any_progress = pass(all);
    } else {  // one warp after the other, as far as it comes alone
      std::vector<std::vector<int>> of_warp(warps.size());
      for (const int thread : all) of_warp[thread / WARP].push_back(thread);
      std::shuffle(of_warp.begin(), of_warp.end(), random_source);
      for (auto& own : of_warp)
        while (!own.empty() && pass(own)) any_progress = true;
      std::erase_if(all, [](int i) { return fibers[i].done; });
    }
    if (!any_progress) {
      std::fprintf(stderr, "emulated: %zu threads wait for ever\n", all.size());
      std::abort();
    }
  }
}

}  // namespace

void wait_for_block() { wait(block); }
void wait_for_warp() { wait(warps[running / WARP]); }
int multiprocessors = 132;
uint64_t* lane_slots() { return &slots[running / WARP * WARP]; }
int& block_or() { return any; }

void run(dim3 grid, dim3 threads, Thread thread, const void* arguments) {
  thread_of_launch = thread;
  arguments_of_launch = arguments;
  gridDim = grid;
  blockDim = threads;
  std::vector<dim3> order;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) order.push_back(dim3(x, y, 0));
  std::shuffle(order.begin(), order.end(), random_source);
  for (const dim3 at : order) {
    blockIdx = at;
    run_block(threads.x);
  }
}

}  // namespace emulated

extern "C" void emulate(uint32_t seed, int multiprocessors) {
  emulated::random_source.seed(seed);
  emulated::multiprocessors = multiprocessors;
}
