// branch_attention: out = softmax(scale * q K^T) V over the prefix, in pages, and the tail. The prefix
// is cut into splits of about SPLIT tokens, and a long one's neighboring splits are one span; a unit of
// work is one span of one sequence and kv head, which reads its keys and values once for all N * G query
// rows, split by split. States (maximum, sum, weighted values) of the spans are merged with the tail
// afterwards. Splits and spans depend on the length and the kv heads alone, and a row is computed in one
// way however many there are, so it has the same bits alone, next to any other rows, in any batch, and
// with any number of threads. Without a mask the tail is the next part of a prompt, and its rows are cut
// in splits as well; a row's last bits then depend on where its prompt was cut.
// Floor: 2 * Hkv * D * itemsize bytes per token of the prefix; 4 * Hq * N * D flops per token.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// What has to be done, in units, and the states of all splits between its two halves. It holds for
// every layer over the same prefixes and mask.
class AttentionPlan {
 public:
  explicit AttentionPlan(const Attention& a)
      : B_(a.B), Hkv_(a.Hkv), N_(a.N), rows_(padded(a.N * (a.Hq / a.Hkv))), width_(padded(a.D)),
        depth_(a.N, -1) {
    for (int64_t i = 0; i < a.N; ++i) {
      if (a.mask == nullptr) depth_[i] = i;
      for (int64_t j = 0; a.mask != nullptr && j < a.N; ++j) depth_[i] += a.mask[i * a.N + j];
    }
    int64_t spans = 0;
    const auto cut = [&](int64_t b, int64_t length, bool in_tail) {
      cuts_.emplace_back(b, length, in_tail, Hkv_, spans);
      spans += cuts_.back().spans;
    };
    for (int64_t b = 0; b < B_; ++b) {
      cut(b, a.lengths[b], false);
      if (a.mask == nullptr) cut(b, a.N, true);
    }
    units_ = spans * Hkv_;
    memory_.reset(new float[units_ * rows_ * (width_ + 2)]);
  }

  // Units that some row sees, of all sequences and kv heads, in the order (b, span, h).
  int64_t units(const Attention& a) const {
    int64_t units = 0;
    for (const Cut& cut : cuts_) units += (cut.spans - cut.hidden_spans(a.window)) * Hkv_;
    return units;
  }

  // Attend to units [begin, end) of these. The heads of a span are read split by split: those of a token
  // stand next to each other in memory.
  template <typename T, typename Q>
  void attend(const Attention& a, int64_t begin, int64_t end, Buffers<T>& buffers) const {
    for (const Cut& cut : cuts_) {
      const int64_t b = cut.b;
      const int64_t hidden = cut.hidden_spans(a.window) * Hkv_, units = cut.spans * Hkv_;
      const int64_t first = std::max<int64_t>(begin, 0) + hidden,
                    last = std::min(end + hidden, units);
      for (int64_t unit = first; unit < std::min(last, first + Hkv_); ++unit)
        take_queries<T, Q>(a, b, unit % Hkv_, buffers);
      std::vector<Split>& splits = buffers.splits;
      splits.clear();
      for (int64_t unit = first; unit < last;) {
        const int64_t span = unit / Hkv_, after = std::min(last, (span + 1) * Hkv_);
        for (int64_t u = unit; u < after; ++u) begin_state(state(cut.first * Hkv_ + u));
        const int64_t end_of = cut.begin_of(span + 1);
        for (int64_t at = cut.begin_of(span); at < end_of;) {
          const int64_t count = end_of - at > LONGEST_SPLIT ? SPLIT : end_of - at;
          for (int64_t u = unit; u < after && at + count > cut.hidden(a.window); ++u)
            splits.push_back({b, u % Hkv_, at, count, cut.first * Hkv_ + u, cut.in_tail});
          at += count;
        }
        unit = after;
      }
      buffers.products.begin();
      for (size_t i = 0; i < splits.size(); ++i)
        attend_split<T>(
            a, splits[i], i + 1 < splits.size() ? splits[i + 1] : Split{}, depth_.data(),
            state(splits[i].unit), buffers);
      buffers.products.end();
      begin -= units - hidden;
      end -= units - hidden;
    }
  }

  // Rows of all sequences and kv heads, in the order (b, h, n).
  int64_t merges() const { return B_ * Hkv_ * N_; }

  template <typename T, typename Q>
  void finish(const Attention& a, int64_t unit, Buffers<T>& buffers) const {
    const int64_t n = unit % N_, h = unit / N_ % Hkv_, b = unit / N_ / Hkv_;
    const int64_t cuts = cuts_.size() / B_;  // of a sequence, whose spans stand together
    const Cut &cut = cuts_[b * cuts], &last = cuts_[b * cuts + cuts - 1];
    const int64_t first = cut.first + cut.hidden_spans(a.window);
    merge<T, Q>(
        a, b, h, n, depth_.data(), state(first * Hkv_ + h), last.first + last.spans - first,
        buffers);
  }

 private:
  // How a prefix, or the tail of a prompt, is cut: in spans of about as many blocks each.
  struct Cut {
    // A long prefix has a multiple of four of them, so that few threads have as much to do, and many
    // have something; a short one has a split in each.
    Cut(int64_t b, int64_t length, bool in_tail, int64_t Hkv, int64_t first)
        : b(b), length(length), in_tail(in_tail), first(first),
          blocks(std::max<int64_t>((length + BLOCK - 1) / BLOCK, 1)) {
      const int64_t about = std::max<int64_t>((length + SPLIT / 2) / SPLIT, 1);
      const int64_t wanted = 4 * std::max((about + 8) / 16, (2 + Hkv) / Hkv);
      spans = about < wanted + wanted / 2 ? about : wanted;
    }

    int64_t begin_of(int64_t span) const { return std::min(blocks * span / spans * BLOCK, length); }

    // Tokens, and whole spans, that no row sees. The rows of the tail stand at length + depth >= length,
    // so the first one sees farthest back.
    int64_t hidden(int64_t window) const {
      return window > 0 && !in_tail ? std::max<int64_t>(length - window + 1, 0) : 0;
    }
    int64_t hidden_spans(int64_t window) const {
      const int64_t tokens = hidden(window), whole = tokens == length ? blocks : tokens / BLOCK;
      // As many as end at or before that many blocks.
      return std::min(spans, (spans * (whole + 1) - 1) / blocks);
    }

    int64_t b, length;  // of a sequence
    bool in_tail;
    int64_t first, blocks, spans;  // first: the number of its first span
  };

  // Before its first split: no row has seen anything.
  void begin_state(const State& state) const {
    std::fill_n(state.maxima, rows_, -INFINITE);
    std::fill_n(state.totals, rows_, 0.0f);
  }

  State state(int64_t unit) const {
    float *values = memory_.get(), *maxima = values + units_ * rows_ * width_;
    float* totals = maxima + units_ * rows_;
    return {values + unit * rows_ * width_, maxima + unit * rows_, totals + unit * rows_};
  }

  const int64_t B_, Hkv_, N_, rows_, width_;  // rows_: query rows of a kv head, padded
  std::vector<int64_t> depth_;                // distance of each row from the prefix
  std::vector<Cut> cuts_;                     // of each sequence
  int64_t units_;
  std::unique_ptr<float[]> memory_;
};

template <typename T>
void attention_of(const Attention& a) {
  const AttentionPlan plan(a);
  torch::stable::parallel_for(0, plan.units(a), 1, [&](int64_t begin, int64_t end) {
    Buffers<T> mine(a);
    plan.attend<T, T>(a, begin, end, mine);
  });
  torch::stable::parallel_for(0, plan.merges(), 16, [&](int64_t begin, int64_t end) {
    Buffers<T> mine(a);
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
