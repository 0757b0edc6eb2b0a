// The parts of branch_attention that work on one block of keys and values.

namespace args_fast::ARGS_FAST_ISA {
namespace {

constexpr int64_t SPLIT = 64;  // tokens per unit: few, so that short prefixes keep all threads busy
constexpr int64_t BLOCK = 32;  // tokens whose keys are transposed at a time
constexpr int64_t ROWS = 6;    // query rows that share a loaded key or value vector

inline float capped(float score, float softcap) {
  return softcap == 0.0f ? score : softcap * std::tanh(score / softcap);
}

// A block of keys [BLOCK, W] as [W, BLOCK]: the rows of a square are interleaved log2(WIDTH) times.
inline void transpose(const float* const* k, int64_t W, float* turned) {
  for (int64_t j = 0; j < BLOCK; j += WIDTH)
    for (int64_t d = 0; d < W; d += WIDTH) {
      Vector rows[WIDTH], mixed[WIDTH];
      for (int64_t i = 0; i < WIDTH; ++i) rows[i] = load(k[j + i] + d);
      for (int64_t done = 1; done < WIDTH; done *= 2) {
        for (int64_t i = 0; i < WIDTH / 2; ++i) {
          mixed[2 * i] = lower(rows[i], rows[i + WIDTH / 2]);
          mixed[2 * i + 1] = upper(rows[i], rows[i + WIDTH / 2]);
        }
        for (int64_t i = 0; i < WIDTH; ++i) rows[i] = mixed[i];
      }
      for (int64_t i = 0; i < WIDTH; ++i) store(turned + (d + i) * BLOCK + j, rows[i]);
    }
}

// Values of R rows: the sums of `count` values, weighed by [R, SPLIT] weights.
template <int64_t R>
inline void weigh(
    const float* weights, const float* const* v, int64_t count, int64_t W, float* values) {
  const auto columns = [&](int64_t d, auto vectors) {
    Vector sums[R][vectors()];
    for (int64_t i = 0; i < R; ++i)
      for (int64_t u = 0; u < vectors(); ++u) sums[i][u] = Vector{};
    for (int64_t j = 0; j < count; ++j)
      for (int64_t u = 0; u < vectors(); ++u) {
        const Vector value = load(v[j] + d + u * WIDTH);
        for (int64_t i = 0; i < R; ++i)
          sums[i][u] = multiply_add(splat(weights[i * SPLIT + j]), value, sums[i][u]);
      }
    for (int64_t i = 0; i < R; ++i)
      for (int64_t u = 0; u < vectors(); ++u) store(values + i * W + d + u * WIDTH, sums[i][u]);
  };
  int64_t d = 0;  // two vectors at a time, so that enough sums are under way
  for (; d + 2 * WIDTH <= W; d += 2 * WIDTH) columns(d, std::integral_constant<int64_t, 2>{});
  if (d < W) columns(d, std::integral_constant<int64_t, 1>{});
}

// Scores [R, SPLIT] of R rows against a block of keys that stands transposed, [W, BLOCK].
template <int64_t R>
inline void score(const float* q, const float* k_turned, int64_t D, int64_t W, float* scores) {
  for (int64_t j = 0; j < BLOCK; j += 2 * WIDTH) {
    Vector low[R], high[R];
    for (int64_t i = 0; i < R; ++i) low[i] = high[i] = Vector{};
    for (int64_t d = 0; d < D; ++d) {
      const Vector a = load(k_turned + d * BLOCK + j), b = load(k_turned + d * BLOCK + j + WIDTH);
      for (int64_t i = 0; i < R; ++i) {
        const Vector x = splat(q[i * W + d]);
        low[i] = multiply_add(x, a, low[i]);
        high[i] = multiply_add(x, b, high[i]);
      }
    }
    for (int64_t i = 0; i < R; ++i) {
      store(scores + i * SPLIT + j, low[i]);
      store(scores + i * SPLIT + j + WIDTH, high[i]);
    }
  }
}

// Call f<rows>() for a number of rows that the compiler is to know.
template <typename F>
inline void for_rows(int64_t rows, F f) {
  switch (rows) {
    case 1: return f(std::integral_constant<int64_t, 1>{});
    case 2: return f(std::integral_constant<int64_t, 2>{});
    case 3: return f(std::integral_constant<int64_t, 3>{});
    case 4: return f(std::integral_constant<int64_t, 4>{});
    case 5: return f(std::integral_constant<int64_t, 5>{});
    default: return f(std::integral_constant<int64_t, ROWS>{});
  }
}

inline void prefetch(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(row) + at);
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

// Turn the scores of a row, in whole blocks, into weights; their maximum and their sum.
inline void soften(float* scores, int64_t count, float& maximum, float& total) {
  Vector top = load(scores);
  for (int64_t j = WIDTH; j < count; j += WIDTH) {
    const Vector s = load(scores + j);
    top = (s > top) | (s != s) ? s : top;
  }
  maximum = highest_of(top);
  total = 0.0f;
  if (maximum == -INFINITE) {  // nothing is seen, nothing weighs
    std::fill_n(scores, count, 0.0f);
    return;
  }
  Vector added{};
  for (int64_t j = 0; j < count; j += WIDTH) {
    const Vector weight = exp_negative(load(scores + j) - maximum);
    store(scores + j, weight);
    added += weight;
  }
  total = sum(added);
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
