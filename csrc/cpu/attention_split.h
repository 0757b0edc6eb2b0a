// The two halves of branch_attention: one split of a prefix, or of a prompt's rows, for all rows of a kv
// head, and the merge of the spans with the tail for one row.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// Tokens [begin, begin + count) of a sequence's prefix, or of a prompt's rows, and a kv head, whose state
// is that of a unit of work.
struct Split {
  int64_t b, h, begin, count, unit;
  bool in_tail;
};

// The softmax state of P query rows after some splits: weighted values [P, W], maxima and sums [P]. Rows
// from R on are there to fill up a vector.
struct State {
  float *values, *maxima, *totals;
};

// The products of splits, by one thread: scaled queries with keys, and weights with values. Keys and
// values are of type T.
template <typename T>
class SplitProducts {
 public:
  SplitProducts(const Attention& a, int64_t P)
      : D_(a.D), P_(P), W_(padded(a.D)), turned_(a.Hkv * P * a.D), k_(ROWS * W_),
        v_(LONGEST_SPLIT * W_) {}

  // Before the first split, and after the last one.
  void begin() {}
  void end() {}

  // Take WIDTH queries [WIDTH, W] of a kv head, of which the first one is number `first`.
  void take_queries(const float* q, int64_t h, int64_t first) {
    transpose(q, W_, D_, turned_.data() + (h * P_ + first) * D_);
  }

  // Scores [count, P] of `count` keys with the queries of a kv head. Their values are fetched meanwhile.
  void score(
      int64_t h, const T* const* keys, const T* const* values, int64_t count, float* scores) {
    for (int64_t j = 0; j < count; j += ROWS) {
      const int64_t rows = std::min(ROWS, count - j);
      const float* k[ROWS];
      for (int64_t t = 0; t < rows; ++t) {
        k[t] = floats(keys[j + t], D_, k_.data() + t * W_);
        prefetch(values[j + t], D_ * sizeof(T));
      }
      for_rows(rows, [&](auto rows) {
        score_rows<rows()>(turned_.data() + h * P_ * D_, k, D_, P_, scores + j * P_);
      });
    }
  }

  // sums [R, W] = what is kept [R] of them + weights [count, P] * values. The keys of the next split are
  // fetched meanwhile. What stands after the weights, up to those of LONGEST_SPLIT, may be overwritten.
  void weigh(
      float* weights, const T* const* values, int64_t count, const float* kept, int64_t R,
      float* sums, const T* const* next, int64_t next_count) {
    const float* v[LONGEST_SPLIT];
    for (int64_t j = 0; j < count; ++j) v[j] = floats(values[j], D_, v_.data() + j * W_);
    for (int64_t r = 0, fetched = 0; r < R; r += ROWS) {
      const int64_t rows = std::min(ROWS, R - r);
      for (; fetched * R < next_count * (r + rows); ++fetched)
        prefetch(next[fetched], D_ * sizeof(T));
      for_rows(rows, [&](auto rows) {
        weigh_rows<rows()>(weights + r, v, count, P_, W_, kept + r, sums + r * W_);
      });
    }
  }

 private:
  const int64_t D_, P_, W_;
  std::vector<float> turned_, k_, v_;  // turned_: each WIDTH queries transposed, [D, WIDTH]
};

// Buffers of one thread, sized once per call.
template <typename T>
struct Buffers {
  explicit Buffers(const Attention& a)
      : P(padded(a.N * (a.Hq / a.Hkv))), products(a, P), q(WIDTH * padded(a.D)),
        scores(LONGEST_SPLIT * P), kept(P) {
    for (int64_t b = 0; b < a.B; ++b)
      shares.resize(std::max<int64_t>(shares.size(), (a.lengths[b] + a.N) / SPLIT + 2 + WIDTH));
  }

  const int64_t P;  // query rows of a kv head, padded
  SplitProducts<T> products;
  std::vector<float> q, scores, kept, shares;
  std::vector<int64_t> seen;  // rows of the tail
  std::vector<Split> splits;
};

// Take the queries of a kv head, scaled.
template <typename T, typename Q>
void take_queries(const Attention& a, int64_t b, int64_t h, Buffers<T>& buffers) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, W = padded(a.D);
  for (int64_t first = 0; first < buffers.P; first += WIDTH) {
    for (int64_t i = 0; i < WIDTH; ++i) {
      const int64_t r = std::min(first + i, R - 1);  // the last one fills up the vector
      const Q* from = static_cast<const Q*>(a.q) + b * a.q_stride[0] + r / G * a.q_stride[1] +
                      (h * G + r % G) * a.q_stride[2];
      float* row = buffers.q.data() + i * W;
      widen(from, a.D, row);
      for (int64_t d = 0; d < W; d += WIDTH) store(row + d, load(row + d) * a.scale);
    }
    buffers.products.take_queries(buffers.q.data(), h, first);
  }
}

// Where the keys or values of a split stand, in pages or in the tail.
template <typename T>
inline void find(
    const Attention& a, const Split& at, const void* pages, const int64_t* page_stride,
    const void* tail, const int64_t* tail_stride, const T** rows) {
  if (at.in_tail) {
    const T* from = static_cast<const T*>(tail) + at.b * tail_stride[0] + at.h * tail_stride[2];
    for (int64_t j = 0; j < at.count; ++j) rows[j] = from + (at.begin + j) * tail_stride[1];
    return;
  }
  const int32_t* table = a.page_table + at.b * a.table_stride;
  int64_t page = at.begin / a.page_size, row = at.begin % a.page_size;
  for (int64_t j = 0; j < at.count; ++page, row = 0) {
    const T* from =
        static_cast<const T*>(pages) + table[page] * page_stride[0] + at.h * page_stride[2];
    for (; row < a.page_size && j < at.count; ++row, ++j) rows[j] = from + row * page_stride[1];
  }
}

// Scores of what a row does not see become -inf: what stands before its window, and a prompt's later rows.
inline void hide(
    const Attention& a, const Split& at, const int64_t* depth, int64_t P, float* scores) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G;
  if (at.in_tail) {
    for (int64_t j = 0; j < at.count; ++j) {
      float* row = scores + j * P;
      std::fill(row, row + (at.begin + j) * G, -INFINITE);
      if (a.window > 0)
        std::fill(row + std::min(R, (at.begin + j + a.window) * G), row + R, -INFINITE);
    }
  } else if (a.window > 0) {
    for (int64_t r = 0; r < R; ++r) {
      // Not seen, nor what comes before.
      const int64_t oldest = a.lengths[at.b] + depth[r / G] - a.window;
      for (int64_t j = 0; j < at.count && at.begin + j <= oldest; ++j)
        scores[j * P + r] = -INFINITE;
    }
  }
}

// Whether rows have neither infinities nor NaNs.
template <typename T>
inline bool finite(const T* const* rows, int64_t count, int64_t D) {
  Vector differences{};
  for (int64_t j = 0; j < count; ++j)
    for (int64_t d = 0; d < D; d += WIDTH) {
      const Vector v = load_part(rows[j] + d, D - d);
      differences += v - v;
    }
  return !any(differences != 0.0f);
}

// As SplitProducts::weigh, for values that are not finite: those without a weight are left out.
template <typename T>
void weigh_seen(
    const float* weights, const T* const* values, int64_t count, int64_t D, const float* kept,
    int64_t R, int64_t P, float* sums) {
  const int64_t W = padded(D);
  for (int64_t r = 0; r < R; ++r)
    for (int64_t d = 0; d < W; d += WIDTH) {
      float* place = sums + r * W + d;
      Vector sum = what_is_kept(kept[r], place);
      for (int64_t j = 0; j < count; ++j) {
        const float weight = weights[j * P + r];
        if (weight != 0.0f) sum = multiply_add(splat(weight), load_part(values[j] + d, D - d), sum);
      }
      store(place, sum);
    }
}

// Add a split to a state. Keys and values are of type T. Values are fetched while scores are made, and
// the keys of `next`, which may have no tokens, while values are weighed: a head's rows lie Hkv * D
// apart, too far for the processor to foresee.
template <typename T>
void attend_split(
    const Attention& a, const Split& at, const Split& next, const int64_t* depth, State state,
    Buffers<T>& buffers) {
  const int64_t R = a.N * (a.Hq / a.Hkv), P = buffers.P, count = at.count;
  const T *keys[LONGEST_SPLIT], *values[LONGEST_SPLIT], *next_keys[LONGEST_SPLIT];
  find(a, at, a.k_pages, a.k_page_stride, a.tail_k, a.tail_k_stride, keys);
  find(a, at, a.v_pages, a.v_page_stride, a.tail_v, a.tail_v_stride, values);
  find(a, next, a.k_pages, a.k_page_stride, a.tail_k, a.tail_k_stride, next_keys);

  float *scores = buffers.scores.data(), *kept = buffers.kept.data();
  buffers.products.score(at.h, keys, values, count, scores);
  if (a.softcap != 0.0f)
    for (int64_t j = 0; j < count; ++j)
      for (int64_t r = 0; r < R; ++r) scores[j * P + r] = capped(scores[j * P + r], a.softcap);
  hide(a, at, depth, P, scores);
  soften(scores, count, P, state.maxima, state.totals, kept);
  if (at.in_tail && !finite(values, count, a.D))
    weigh_seen(scores, values, count, a.D, kept, R, P, state.values);
  else
    buffers.products.weigh(scores, values, count, kept, R, state.values, next_keys, next.count);
}

// Scores [seen] of a head's query with the tail's keys that its row sees; then -inf up to a whole vector.
template <typename T>
void score_tail(
    const Attention& a, const T* keys, int64_t stride, const std::vector<int64_t>& seen,
    const float* q, float* scores) {
  const int64_t count = seen.size();
  for (int64_t at = 0; at < count; at += WIDTH) {
    Vector products[WIDTH] = {};
    for (int64_t i = 0; i < std::min(WIDTH, count - at); ++i)
      for (int64_t d = 0; d < a.D; d += WIDTH)
        products[i] = multiply_add(
            load(q + d), load_part(keys + seen[at + i] * stride + d, a.D - d), products[i]);
    for (int64_t i = 0; i < WIDTH; i += 4)
      products[i] = folded(products[i], products[i + 1], products[i + 2], products[i + 3]);
    store(scores + at, sums_of_folded(products));
  }
  if (a.softcap != 0.0f)
    for (int64_t i = 0; i < count; ++i) scores[i] = capped(scores[i], a.softcap);
  std::fill(scores + count, scores + (count + WIDTH - 1) / WIDTH * WIDTH, -INFINITE);
}

// Merge the spans' states of one tail row's G heads with the tail and the sinks, and write them.
template <typename T, typename Q>
void merge(
    const Attention& a, int64_t b, int64_t h, int64_t n, const int64_t* depth, const State& states,
    int64_t spans, Buffers<T>& buffers) {
  const int64_t G = a.Hq / a.Hkv, P = buffers.P, D = a.D, W = padded(D);
  float *q = buffers.q.data(), *scores = buffers.scores.data(), *shares = buffers.shares.data();
  const T* keys = static_cast<const T*>(a.tail_k) + b * a.tail_k_stride[0] + h * a.tail_k_stride[2];
  const T* rows = static_cast<const T*>(a.tail_v) + b * a.tail_v_stride[0] + h * a.tail_v_stride[2];
  std::vector<int64_t>& seen = buffers.seen;
  seen.clear();
  for (int64_t j = 0; a.mask != nullptr && j < a.N; ++j)  // a prompt's rows are in the spans
    if (a.mask[n * a.N + j] && (a.window == 0 || depth[n] - depth[j] < a.window)) seen.push_back(j);
  const int64_t count = seen.size();
  for (int64_t g = 0; g < G; ++g) {
    const int64_t head = h * G + g, r = n * G + g;
    widen(
        static_cast<const Q*>(a.q) + b * a.q_stride[0] + n * a.q_stride[1] + head * a.q_stride[2],
        D, q);
    for (int64_t d = 0; d < D; ++d) q[d] *= a.scale;

    const float sink = a.sinks == nullptr ? -INFINITE : a.sinks[head];
    float highest = sink;
    const auto raise = [&](float score) {
      if (score > highest || score != score) highest = score;
    };
    for (int64_t s = 0; s < spans; ++s) raise(shares[s] = states.maxima[s * a.Hkv * P + r]);
    score_tail(a, keys, a.tail_k_stride[1], seen, q, scores);
    for (int64_t i = 0; i < count; i += WIDTH) raise(highest_of(load(scores + i)));

    float total = sink == -INFINITE ? 0.0f : exp_negative(sink - highest);
    for (int64_t s = 0; s < spans; s += WIDTH)
      store(shares + s, exp_negative(load(shares + s) - highest));
    for (int64_t s = 0; s < spans; ++s) total += shares[s] * states.totals[s * a.Hkv * P + r];
    Vector weights{};
    for (int64_t i = 0; i < count; i += WIDTH) {
      const Vector weight = exp_negative(load(scores + i) - highest);
      store(scores + i, weight);
      weights += weight;
    }
    total += sum(weights);

    Q* out = static_cast<Q*>(a.out) + ((b * a.N + n) * a.Hq + head) * D;
    for_vectors(W, [&](int64_t d, auto vectors) {
      Vector sums[vectors()] = {};
      for (int64_t s = 0; s < spans; ++s) {
        if (shares[s] == 0.0f) continue;  // what is not seen may be a NaN
        const float* from = states.values + (s * a.Hkv * P + r) * W + d;
        for (int64_t u = 0; u < vectors(); ++u)
          sums[u] = multiply_add(splat(shares[s]), load(from + u * WIDTH), sums[u]);
      }
      for (int64_t i = 0; i < count; ++i) {
        const T* row = rows + seen[i] * a.tail_v_stride[1] + d;
        for (int64_t u = 0; u < vectors(); ++u)
          sums[u] = multiply_add(
              splat(scores[i]), load_part(row + u * WIDTH, D - d - u * WIDTH), sums[u]);
      }
      for (int64_t u = 0; u < vectors(); ++u)
        store_part(out + d + u * WIDTH, sums[u] / total, D - d - u * WIDTH);
    });
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
