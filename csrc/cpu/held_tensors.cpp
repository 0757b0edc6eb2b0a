// hold_layers and release_layers as torch sees them.
#include "held_tensors.h"
#include "ops.h"

#include <map>
#include <mutex>
#include <utility>

namespace args_fast {
namespace {

struct Shelf {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<const HeldTensors>> held;
  int64_t last = 0;
};

Shelf& shelf() {
  static Shelf* only = new Shelf;  // outlives torch, which its tensors need when they go
  return *only;
}

}  // namespace

int64_t hold_layers(std::vector<Tensor> weights, std::vector<Tensor> low_rank) {
  auto tensors =
      std::make_shared<const HeldTensors>(HeldTensors{std::move(weights), std::move(low_rank)});
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  shelf().held.emplace(++shelf().last, std::move(tensors));
  return shelf().last;
}

void release_layers(int64_t number) {
  std::shared_ptr<const HeldTensors> last;  // goes after the lock
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  const auto found = shelf().held.find(number);
  if (found == shelf().held.end()) return;
  last = std::move(found->second);
  shelf().held.erase(found);
}

std::shared_ptr<const HeldTensors> held_tensors(int64_t number) {
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  const auto found = shelf().held.find(number);
  STD_TORCH_CHECK(
      found != shelf().held.end(), "args_fast: layers ", number, " are not held, or were released");
  return found->second;
}

}  // namespace args_fast
