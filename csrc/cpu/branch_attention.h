// branch_attention: out = softmax(scale * q K^T) V over the prefix, in pages, and the tail. The prefix
// is cut into splits of about SPLIT tokens; a unit of work is one split of one sequence and kv head,
// which reads its keys and values once for all N * G query rows. States (maximum, sum, weighted values)
// of the splits are merged with the tail afterwards. Splits depend on the length alone, and a row is
// computed in one way however many there are, so it has the same bits alone, next to any other rows,
// in any batch, and with any number of threads.
// Floor: 2 * Hkv * D * itemsize bytes per token of the prefix; 4 * Hq * N * D flops per token.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// What has to be done, in units, and the states of all splits between its two halves. It holds for
// every layer over the same prefixes and mask.
class AttentionPlan {
 public:
  explicit AttentionPlan(const Attention& a)
      : B_(a.B), Hkv_(a.Hkv), N_(a.N), rows_(a.N * (a.Hq / a.Hkv)), width_(padded(a.D)),
        depth_(a.N, -1), size_(a.B), first_(a.B + 1, 0) {
    for (int64_t i = 0; i < a.N; ++i)
      for (int64_t j = 0; j < a.N; ++j) depth_[i] += a.mask[i * a.N + j];
    for (int64_t b = 0; b < B_; ++b) {
      const int64_t length = a.lengths[b],
                    number = std::max<int64_t>((length + SPLIT / 2) / SPLIT, 1);
      size_[b] = std::max<int64_t>((length + number - 1) / number, 1);
      first_[b + 1] = first_[b] + (length + size_[b] - 1) / size_[b];
    }
    memory_.reset(new float[first_[B_] * Hkv_ * (rows_ * width_ + 2 * padded(rows_))]);
  }

  // Splits that some row sees, of all sequences and kv heads, in the order (b, split, h): the heads of
  // a token stand next to each other in memory.
  int64_t splits(const Attention& a) const {
    int64_t splits = 0;
    for (int64_t b = 0; b < B_; ++b) splits += first_[b + 1] - first_[b] - hidden(a, b);
    return splits * Hkv_;
  }

  // Attend to splits [begin, end) of these.
  template <typename T, typename Q>
  void attend(const Attention& a, int64_t begin, int64_t end, Buffers& buffers) const {
    for (int64_t b = 0; b < B_; ++b) {
      const int64_t before = hidden(a, b) * Hkv_, units = (first_[b + 1] - first_[b]) * Hkv_;
      const int64_t first = std::max<int64_t>(begin, 0) + before,
                    last = std::min(end + before, units);
      for (int64_t unit = first; unit < last; ++unit) {
        const Split at = split(a, b, unit),
                    next = unit + 1 < last ? split(a, b, unit + 1) : Split{};
        if (unit < first + Hkv_) turn_queries<Q>(a, b, at.h, buffers);
        attend_split<T>(a, at, next, depth_.data(), state(first_[b] * Hkv_ + unit), buffers);
      }
      begin -= units - before;
      end -= units - before;
    }
  }

  // Rows of all sequences and kv heads, in the order (b, h, n).
  int64_t merges() const { return B_ * Hkv_ * N_; }

  template <typename T, typename Q>
  void finish(const Attention& a, int64_t unit, Buffers& buffers) const {
    const int64_t n = unit % N_, h = unit / N_ % Hkv_, b = unit / N_ / Hkv_;
    const int64_t first = first_[b] + hidden(a, b), splits = first_[b + 1] - first;
    merge<T, Q>(a, b, h, n, depth_.data(), state(first * Hkv_ + h), splits, buffers);
  }

 private:
  // Splits of a sequence that no row sees. The rows of the tail stand at length + depth >= length, so
  // the first one sees farthest back.
  int64_t hidden(const Attention& a, int64_t b) const {
    return a.window > 0 ? std::max<int64_t>(a.lengths[b] - a.window + 1, 0) / size_[b] : 0;
  }

  Split split(const Attention& a, int64_t b, int64_t unit) const {
    const int64_t begin = unit / Hkv_ * size_[b];
    return {b, unit % Hkv_, begin, std::min(size_[b], a.lengths[b] - begin)};
  }

  State state(int64_t unit) const {
    const int64_t units = first_[B_] * Hkv_, P = padded(rows_);
    float *values = memory_.get(), *maxima = values + units * rows_ * width_;
    float* totals = maxima + units * P;
    return {values + unit * rows_ * width_, maxima + unit * P, totals + unit * P};
  }

  const int64_t B_, Hkv_, N_, rows_, width_;
  // Distance of each row from the prefix; tokens of a split of each sequence, where the last one may have
  // fewer; and the number of its first one.
  std::vector<int64_t> depth_, size_, first_;
  std::unique_ptr<float[]> memory_;
};

template <typename T>
void attention_of(const Attention& a) {
  const AttentionPlan plan(a);
  torch::stable::parallel_for(0, plan.splits(a), 1, [&](int64_t begin, int64_t end) {
    Buffers mine(a);
    plan.attend<T, T>(a, begin, end, mine);
  });
  torch::stable::parallel_for(0, plan.merges(), 16, [&](int64_t begin, int64_t end) {
    Buffers mine(a);
    for (int64_t unit = begin; unit < end; ++unit) plan.finish<T, T>(a, unit, mine);
  });
}

void attention(const Attention& a) {
  switch (a.type) {
    case Type::f32: return attention_of<float>(a);
    case Type::bf16: return attention_of<BFloat16>(a);
    case Type::f16: return attention_of<Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
