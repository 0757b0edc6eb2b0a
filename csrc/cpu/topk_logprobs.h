// topk_logprobs: one pass over the logits for the maximum, the sum of exponentials and the candidates.
// The vocabulary is cut into chunks of CHUNK; each keeps its k best in a heap whose root is the bar to
// clear, and the chunks are merged. Floor: V * itemsize bytes per row.

namespace args_fast::ARGS_FAST_ISA {
namespace {

constexpr int64_t CHUNK = 8192;
constexpr int64_t CHUNKS_OF_A_THREAD = 8;  // at least: fewer are scanned before another has come

struct Candidate {
  float logit;
  int64_t id;
};

inline bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

struct Chunk {
  std::vector<Candidate> best;  // a heap whose front is the last in order
  float maximum = -INFINITE, total = 0.0f;
  bool broken = false;  // a NaN or +inf
};

// WIDTH logits from v on; -inf after the last one.
template <typename T>
inline Vector logits_at(const T* logits, int64_t v, int64_t end) {
  if (v + WIDTH <= end) return widened(logits + v);
  float values[WIDTH];
  for (int64_t i = 0; i < WIDTH; ++i) values[i] = v + i < end ? to_float(logits[v + i]) : -INFINITE;
  return load(values);
}

template <typename T>
void scan(const T* logits, int64_t begin, int64_t end, int64_t k, Chunk& chunk) {
  Vector top = splat(-INFINITE);
  Integers bad{};
  for (int64_t v = begin; v < end; v += WIDTH) {
    const Vector x = logits_at(logits, v, end);
    bad |= ~(x < INFINITE);
    top = x > top ? x : top;
    const bool room = int64_t(chunk.best.size()) < k;
    const float bar = room ? -INFINITE : chunk.best.front().logit;
    if (!room && !any(x > bar)) continue;
    float values[WIDTH];
    store(values, x);
    for (int64_t i = 0; i < std::min(WIDTH, end - v); ++i) {
      const Candidate candidate{values[i], v + i};
      if (int64_t(chunk.best.size()) < k) {
        chunk.best.push_back(candidate);
        std::push_heap(chunk.best.begin(), chunk.best.end(), before);
      } else if (before(candidate, chunk.best.front())) {
        std::pop_heap(chunk.best.begin(), chunk.best.end(), before);
        chunk.best.back() = candidate;
        std::push_heap(chunk.best.begin(), chunk.best.end(), before);
      }
    }
  }
  for (int64_t i = 0; i < WIDTH; ++i) {
    chunk.broken |= bad[i] != 0;
    chunk.maximum = std::max(chunk.maximum, top[i]);
  }
  if (chunk.broken || chunk.maximum == -INFINITE) return;
  Vector added{};
  for (int64_t v = begin; v < end; v += WIDTH)  // the chunk is in the first cache by now
    added += exp_negative(logits_at(logits, v, end) - chunk.maximum);
  chunk.total = sum(added);
}

template <typename T>
void topk_of(const TopK& a) {
  const int64_t chunks = (a.V + CHUNK - 1) / CHUNK;
  std::vector<Chunk> scanned(a.B * chunks);
  torch::stable::parallel_for(0, a.B * chunks, CHUNKS_OF_A_THREAD, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / chunks, first = unit % chunks * CHUNK;
      scan(
          static_cast<const T*>(a.logits) + b * a.stride, first, std::min(first + CHUNK, a.V), a.k,
          scanned[unit]);
    }
  });
  for (int64_t b = 0; b < a.B; ++b) {
    std::vector<Candidate> best;
    float maximum = -INFINITE;
    bool broken = false;
    for (int64_t c = 0; c < chunks; ++c) {
      const Chunk& chunk = scanned[b * chunks + c];
      best.insert(best.end(), chunk.best.begin(), chunk.best.end());
      maximum = std::max(maximum, chunk.maximum);
      broken |= chunk.broken;
    }
    float *logprobs = a.logprobs + b * a.k, total = 0.0f;
    int64_t* ids = a.ids + b * a.k;
    if (broken || maximum == -INFINITE) {
      for (int64_t i = 0; i < a.k; ++i) {
        logprobs[i] = std::numeric_limits<float>::quiet_NaN();
        ids[i] = i;
      }
      continue;
    }
    for (int64_t c = 0; c < chunks; ++c) {
      const Chunk& chunk = scanned[b * chunks + c];
      if (chunk.maximum > -INFINITE) total += chunk.total * exp_negative(chunk.maximum - maximum);
    }
    std::partial_sort(best.begin(), best.begin() + a.k, best.end(), before);
    const float norm = maximum + std::log(total);
    for (int64_t i = 0; i < a.k; ++i) {
      logprobs[i] = best[i].logit - norm;
      ids[i] = best[i].id;
    }
  }
}

void topk_logprobs(const TopK& a) {
  switch (a.type) {
    case Type::f32: return topk_of<float>(a);
    case Type::bf16: return topk_of<BFloat16>(a);
    case Type::f16: return topk_of<Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
