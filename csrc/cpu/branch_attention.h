// branch_attention: out = softmax(scale * q K^T) V over the prefix, in pages, and the tail. The prefix
// is cut into splits of about SPLIT tokens; a unit of work is one split of one sequence and kv head, which
// reads its keys and values once for all N * G query rows. States (maximum, sum, weighted values) of
// the splits are merged with the tail afterwards. Splits depend on the length alone, and a row is
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
      : Hkv_(a.Hkv), N_(a.N), rows_(a.N * (a.Hq / a.Hkv)), width_(padded(a.D)), depth_(a.N, -1),
        first_(a.B + 1, 0) {
    for (int64_t i = 0; i < a.N; ++i)
      for (int64_t j = 0; j < a.N; ++j) depth_[i] += a.mask[i * a.N + j];
    for (int64_t b = 0; b < a.B; ++b) {
      const int64_t size = split_size(a.lengths[b]);
      first_[b + 1] = first_[b] + (a.lengths[b] + size - 1) / size;
    }
    memory_.reset(new float[splits() * (rows_ * width_ + 2 * padded(rows_))]);
  }

  // Splits of all sequences and kv heads, in the order (b, split, h): the heads of a token stand next to
  // each other in memory.
  int64_t splits() const { return first_.back() * Hkv_; }

  // The thread that takes this unit will take the next one, or none if that is negative, after it.
  template <typename T, typename Q>
  void attend(const Attention& a, int64_t unit, int64_t next, Buffers& buffers) const {
    const Split at = split(a, unit);
    if (buffers.turned_of != at.b) turn_queries<Q>(a, at.b, buffers);
    buffers.turned_of = next < 0 ? -1 : at.b;
    attend_split<T>(
        a, at, next < 0 ? Split{} : split(a, next), depth_.data(), state(unit), buffers);
  }

  // Rows of all sequences and kv heads, in the order (b, h, n).
  int64_t merges() const { return (int64_t(first_.size()) - 1) * Hkv_ * N_; }

  template <typename T, typename Q>
  void finish(const Attention& a, int64_t unit, Buffers& buffers) const {
    const int64_t n = unit % N_, h = unit / N_ % Hkv_, b = unit / N_ / Hkv_;
    const int64_t splits = first_[b + 1] - first_[b];
    const State states = state(first_[b] * Hkv_ + h);
    merge<T, Q>(a, b, h, n, depth_.data(), states, splits, buffers);
  }

 private:
  // Tokens of a split of a sequence: all splits have as many, but for the last one.
  static int64_t split_size(int64_t length) {
    const int64_t number = std::max<int64_t>(1, (length + SPLIT / 2) / SPLIT);
    return std::max<int64_t>(1, (length + number - 1) / number);
  }

  Split split(const Attention& a, int64_t unit) const {
    const int64_t b =
        std::upper_bound(first_.begin(), first_.end(), unit / Hkv_) - first_.begin() - 1;
    const int64_t within = unit - first_[b] * Hkv_, size = split_size(a.lengths[b]);
    const int64_t begin = within / Hkv_ * size;
    return {b, within % Hkv_, begin, std::min(size, a.lengths[b] - begin)};
  }

  State state(int64_t unit) const {
    const int64_t P = padded(rows_);
    float *values = memory_.get(), *maxima = values + splits() * rows_ * width_;
    float* totals = maxima + splits() * P;
    return {values + unit * rows_ * width_, maxima + unit * P, totals + unit * P};
  }

  const int64_t Hkv_, N_, rows_, width_;
  std::vector<int64_t> depth_, first_;
  std::unique_ptr<float[]> memory_;
};

template <typename T>
void attention_of(const Attention& a) {
  const AttentionPlan plan(a);
  torch::stable::parallel_for(0, plan.splits(), 1, [&](int64_t begin, int64_t end) {
    Buffers mine(a);
    for (int64_t unit = begin; unit < end; ++unit)
      plan.attend<T, T>(a, unit, unit + 1 < end ? unit + 1 : -1, mine);
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
