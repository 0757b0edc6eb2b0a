// The parts of branch_attention that work on one block of keys and values.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// Prefixes are cut at multiples of a block of tokens. A split has about two blocks, whose keys, values and
// weights stay in the first caches.
constexpr int64_t BLOCK = 32, SPLIT = 2 * BLOCK, LONGEST_SPLIT = 3 * BLOCK;
// Keys that share a loaded vector of queries, and query rows that share a loaded vector of values:
// twice as many sums stand in registers.
constexpr int64_t ROWS = WIDTH == 16 ? 8 : 6;

inline float capped(float score, float softcap) {
  return softcap == 0.0f ? score : softcap * std::tanh(score / softcap);
}

// Call f(at, vectors) for the vectors of a row of W floats: two at a time, so that enough sums are
// under way.
template <typename F>
inline void for_vectors(int64_t W, F f) {
  int64_t at = 0;
  for (; at + 2 * WIDTH <= W; at += 2 * WIDTH) f(at, std::integral_constant<int64_t, 2>{});
  if (at < W) f(at, std::integral_constant<int64_t, 1>{});
}

// Call f(rows) for a number of rows, up to MOST, that the compiler is to know.
template <int64_t MOST = ROWS, typename F>
inline void for_rows(int64_t rows, F f) {
  if constexpr (MOST > 1)
    if (rows < MOST) return for_rows<MOST - 1>(rows, f);
  f(std::integral_constant<int64_t, MOST>{});
}

// Scores [T, P] of T keys against P rows of queries, of which each WIDTH stand transposed, [D, WIDTH].
template <int64_t T>
inline void score_rows(const float* q, const float* const* k, int64_t D, int64_t P, float* scores) {
  for_vectors(P, [&](int64_t r, auto vectors) {
    Vector sums[T][vectors()];
    for (int64_t t = 0; t < T; ++t)
      for (int64_t u = 0; u < vectors(); ++u) sums[t][u] = Vector{};
    for (int64_t d = 0; d < D; ++d) {
      Vector x[vectors()];
      for (int64_t u = 0; u < vectors(); ++u) x[u] = load(q + (r + u * WIDTH) * D + d * WIDTH);
      for (int64_t t = 0; t < T; ++t)
        for (int64_t u = 0; u < vectors(); ++u)
          sums[t][u] = multiply_add(splat(k[t][d]), x[u], sums[t][u]);
    }
    for (int64_t t = 0; t < T; ++t)
      for (int64_t u = 0; u < vectors(); ++u) store(scores + t * P + r + u * WIDTH, sums[t][u]);
  });
}

// Sums times the part of them that is kept. Where that is 0 there was nothing, whatever stands there.
inline Vector what_is_kept(float part, const float* sums) {
  return part == 0.0f ? Vector{} : part * load(sums);
}

// Add to what is kept [R] of the values [R, W] of R rows the sums of `count` values, weighed by [count, P]
// weights.
template <int64_t R>
inline void weigh_rows(
    const float* weights, const float* const* v, int64_t count, int64_t P, int64_t W,
    const float* kept, float* values) {
  for_vectors(W, [&](int64_t d, auto vectors) {
    Vector sums[R][vectors()];
    for (int64_t i = 0; i < R; ++i)
      for (int64_t u = 0; u < vectors(); ++u)
        sums[i][u] = what_is_kept(kept[i], values + i * W + d + u * WIDTH);
    for (int64_t j = 0; j < count; ++j) {
      Vector x[vectors()];
      for (int64_t u = 0; u < vectors(); ++u) x[u] = load(v[j] + d + u * WIDTH);
      for (int64_t i = 0; i < R; ++i)
        for (int64_t u = 0; u < vectors(); ++u)
          sums[i][u] = multiply_add(splat(weights[j * P + i]), x[u], sums[i][u]);
    }
    for (int64_t i = 0; i < R; ++i)
      for (int64_t u = 0; u < vectors(); ++u) store(values + i * W + d + u * WIDTH, sums[i][u]);
  });
}

inline void prefetch(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64)
    __builtin_prefetch(static_cast<const char*>(row) + at, 0, KEYS_AND_VALUES);
}

// A row of whole vectors of floats is used where it stands; any other is widened into `room`.
inline const float* floats(const float* row, int64_t D, float* room) {
  if (D % WIDTH == 0) return row;
  widen(row, D, room);
  return room;
}
template <typename T>
inline const float* floats(const T* row, int64_t D, float* room) {
  widen(row, D, room);
  return room;
}

// Turn the scores [count, P] of P rows into weights, after others whose maxima and sums [P] are known:
// -inf and 0 where there are none. `kept` [P]: what the weights before are worth from now on.
inline void soften(
    float* scores, int64_t count, int64_t P, float* maxima, float* totals, float* kept) {
  for (int64_t r = 0; r < P; r += WIDTH) {
    constexpr int64_t CHAINS = 4;  // a comparison takes longer than the next one waits
    Vector tops[CHAINS];
    for (Vector& top : tops) top = splat(-INFINITE);
    // A NaN is left to its weight.
    const auto raise = [](Vector& top, Vector s) { top = larger(s, top); };
    int64_t j = 0;
    for (; j + CHAINS <= count; j += CHAINS)
      for (int64_t i = 0; i < CHAINS; ++i) raise(tops[i], load(scores + (j + i) * P + r));
    for (; j < count; ++j) raise(tops[0], load(scores + j * P + r));
    for (int64_t i = 1; i < CHAINS; ++i) raise(tops[0], tops[i]);
    const Vector before = load(maxima + r);
    raise(tops[0], before);
    store(maxima + r, tops[0]);
    // What sees nothing has weights of 0: e^(-inf - 0).
    const Vector most = tops[0] == -INFINITE ? Vector{} : tops[0];
    const Vector factor = exp_negative(before - most);
    store(kept + r, factor);
    Vector total = factor * load(totals + r);
    for (j = 0; j < count; ++j) {
      const Vector weight = exp_negative(load(scores + j * P + r) - most);
      store(scores + j * P + r, weight);
      total += weight;
    }
    store(totals + r, total);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
