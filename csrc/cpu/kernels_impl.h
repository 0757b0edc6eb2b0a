// The kernels, for the instruction set that the including file has switched on.
//
// branch_attention: out = softmax(scale * q K^T) V over the prefix, in pages, and the tail. The prefix
// is cut into splits of SPLIT tokens; a unit of work is one split of one sequence and kv head, which
// reads its keys and values once for all N * G query rows. States (maximum, sum, weighted values) of
// the splits are merged with the tail afterwards. Splits depend on the length alone, so a sequence has
// the same bits alone, in a batch, and with any number of threads.
// Floor: 2 * Hkv * D * itemsize bytes per token of the prefix; 4 * Hq * N * D flops per token.

namespace args_fast {
namespace ARGS_FAST_ISA {
namespace {

constexpr int64_t SPLIT = 256;  // tokens per unit: its keys and values stay in the second cache level
constexpr int64_t BLOCK = 32;   // tokens per softmax update
constexpr int64_t WIDTH = ARGS_FAST_WIDTH;  // floats in a vector: 4, 8 or 16
constexpr int64_t ROWS = 4;  // query rows that share a loaded key or value vector
constexpr float INFINITE = std::numeric_limits<float>::infinity();

typedef float Vector __attribute__((vector_size(4 * ARGS_FAST_WIDTH)));
typedef int32_t Integers __attribute__((vector_size(4 * ARGS_FAST_WIDTH)));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline Vector splat(float x) { return Vector{} + x; }

// Four lanes at a time, then one at a time: f takes vectors of four, and floats.
typedef float Four __attribute__((vector_size(16)));
template <typename F>
inline float reduce(Vector v, F f) {
  Four part[WIDTH / 4];
  std::memcpy(part, &v, sizeof v);
  for (int64_t half = WIDTH / 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) part[i] = f(part[i], part[i + half]);
  return f(f(part[0][0], part[0][2]), f(part[0][1], part[0][3]));
}

inline float sum(Vector v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}

// The largest, or a NaN where there is one.
inline float highest_of(Vector v) {
  return reduce(v, [](auto a, auto b) { return (a > b) | (a != a) ? a : b; });
}

// a0 b0 a1 b1 ... of the lower halves, and of the upper ones.
#if defined(__clang__)
#define ARGS_FAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ARGS_FAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Integers{__VA_ARGS__})
#endif
#if ARGS_FAST_WIDTH == 16
inline Vector lower(Vector a, Vector b) {
  return ARGS_FAST_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vector upper(Vector a, Vector b) {
  return ARGS_FAST_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif ARGS_FAST_WIDTH == 8
inline Vector lower(Vector a, Vector b) {
  return ARGS_FAST_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline Vector upper(Vector a, Vector b) {
  return ARGS_FAST_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
inline Vector lower(Vector a, Vector b) { return ARGS_FAST_SHUFFLE(a, b, 0, 4, 1, 5); }
inline Vector upper(Vector a, Vector b) { return ARGS_FAST_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif
#undef ARGS_FAST_SHUFFLE

inline float to_float(float x) { return x; }

struct BFloat16 {
  uint16_t bits;
};
inline float to_float(BFloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &wide, sizeof f);
  return f;
}
inline void from_float(float x, BFloat16& to) {  // to nearest, ties to even
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof x);
  to.bits = x != x ? 0x7FC0 : uint16_t((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
}

struct Half {
  uint16_t bits;
};
inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7FFF;
  float f;
  uint32_t wide;
  if (rest >= 0x7C00) {
    wide = 0x7F800000 | (rest & 0x3FF) << 13;
  } else if (rest >= 0x400) {
    wide = (rest << 13) + (112u << 23);
  } else {  // subnormal: an integer multiple of 2^-24
    f = float(rest) * 5.9604644775390625e-8f;
    std::memcpy(&wide, &f, sizeof f);
  }
  wide |= sign;
  std::memcpy(&f, &wide, sizeof f);
  return f;
}
inline void from_float(float x, Half& to) {  // to nearest, ties to even
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof x);
  const uint32_t sign = (wide >> 16) & 0x8000;
  wide &= 0x7FFFFFFF;
  if (wide > 0x7F800000) {
    to.bits = uint16_t(sign | 0x7E00);
  } else if (wide >= 0x477FF000) {  // rounds above the largest half
    to.bits = uint16_t(sign | 0x7C00);
  } else if (wide < 0x38800000) {  // subnormal: add a number whose last bit is 2^-24
    float f;
    std::memcpy(&f, &wide, sizeof f);
    f += 0.5f;
    std::memcpy(&wide, &f, sizeof f);
    to.bits = uint16_t(sign | (wide - 0x3F000000));
  } else {
    wide += 0xFFF + ((wide >> 13) & 1) - (112u << 23);
    to.bits = uint16_t(sign | wide >> 13);
  }
}
inline void from_float(float x, float& to) { to = x; }

// e^x for x <= 0 to about one unit in the last place: 2^n * e^r with |r| <= ln(2) / 2.
inline Vector exp_negative(Vector x) {
  const Vector low = splat(-87.3f);
  const Vector clamped = x > low ? x : low;
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector n = (clamped * 1.44269504088896341f + magic) - magic;
  const Vector r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Vector p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector power;
  std::memcpy(&power, &exponent, sizeof power);
  // Below the clamp the result is 0, which is also what a masked score (-inf) weighs. A NaN stays.
  return x != x ? x : (x > low ? p * power : Vector{});
}

inline float exp_negative(float x) { return exp_negative(splat(x))[0]; }

inline int64_t padded(int64_t D) { return (D + WIDTH - 1) / WIDTH * WIDTH; }

// A row of D elements as floats, padded with zeros to whole vectors.
template <typename T>
inline void widen(const T* from, int64_t D, float* to) {
  int64_t d = 0;
  for (; d < D; ++d) to[d] = to_float(from[d]);
  for (; d < padded(D); ++d) to[d] = 0.0f;
}

inline float dot(const float* a, const float* b, int64_t W) {
  Vector even{}, odd{};
  int64_t d = 0;
  for (; d + 2 * WIDTH <= W; d += 2 * WIDTH) {
    even += load(a + d) * load(b + d);
    odd += load(a + d + WIDTH) * load(b + d + WIDTH);
  }
  if (d < W) even += load(a + d) * load(b + d);
  return sum(even + odd);
}

inline float capped(float score, float softcap) {
  return softcap == 0.0f ? score : softcap * std::tanh(score / softcap);
}

// The softmax state of R query rows: weighted values [R, W], maxima and sums [R].
struct State {
  float *values, *maximum, *total;
};

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

// Weigh a block of `count` values into the states of R rows.
template <int64_t R>
inline void accumulate(
    const float* weights, const float* const* v, int64_t count, int64_t W, float* values) {
  const auto columns = [&](int64_t d, auto vectors) {
    Vector sums[R][vectors()];
    for (int64_t i = 0; i < R; ++i)
      for (int64_t u = 0; u < vectors(); ++u) sums[i][u] = load(values + i * W + d + u * WIDTH);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t u = 0; u < vectors(); ++u) {
        const Vector value = load(v[j] + d + u * WIDTH);
        for (int64_t i = 0; i < R; ++i) sums[i][u] += weights[i * BLOCK + j] * value;
      }
    for (int64_t i = 0; i < R; ++i)
      for (int64_t u = 0; u < vectors(); ++u) store(values + i * W + d + u * WIDTH, sums[i][u]);
  };
  int64_t d = 0;  // two vectors at a time, so that enough sums are under way
  for (; d + 2 * WIDTH <= W; d += 2 * WIDTH) columns(d, std::integral_constant<int64_t, 2>{});
  if (d < W) columns(d, std::integral_constant<int64_t, 1>{});
}

// Scores of R rows against a block of keys that stands transposed, [W, BLOCK].
template <int64_t R>
inline void score(const float* q, const float* k_turned, int64_t D, int64_t W, float* scores) {
  for (int64_t j = 0; j < BLOCK; j += 2 * WIDTH) {
    Vector low[R], high[R];
    for (int64_t i = 0; i < R; ++i) low[i] = high[i] = Vector{};
    for (int64_t d = 0; d < D; ++d) {
      const Vector a = load(k_turned + d * BLOCK + j), b = load(k_turned + d * BLOCK + j + WIDTH);
      for (int64_t i = 0; i < R; ++i) {
        low[i] += q[i * W + d] * a;
        high[i] += q[i * W + d] * b;
      }
    }
    for (int64_t i = 0; i < R; ++i) {
      store(scores + i * BLOCK + j, low[i]);
      store(scores + i * BLOCK + j + WIDTH, high[i]);
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
    default: return f(std::integral_constant<int64_t, ROWS>{});
  }
}

inline void prefetch(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64)
    __builtin_prefetch(static_cast<const char*>(row) + at);
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

// Turn a row's scores into weights, and rescale its state to the new maximum.
inline void update(float* scores, int64_t W, float* values, float& maximum, float& total) {
  Vector top = load(scores);
  for (int64_t j = WIDTH; j < BLOCK; j += WIDTH) {
    const Vector s = load(scores + j);
    top = (s > top) | (s != s) ? s : top;
  }
  const float block = highest_of(top);
  const float highest = block > maximum || block != block ? block : maximum;
  if (highest == -INFINITE) {  // nothing seen yet, nothing to weigh
    std::memset(scores, 0, BLOCK * sizeof(float));
    return;
  }
  const float shrink = maximum == -INFINITE ? 0.0f : exp_negative(maximum - highest);
  Vector added{};
  for (int64_t j = 0; j < BLOCK; j += WIDTH) {
    const Vector weight = exp_negative(load(scores + j) - highest);
    store(scores + j, weight);
    added += weight;
  }
  total = total * shrink + sum(added);
  if (shrink != 1.0f)
    for (int64_t d = 0; d < W; d += WIDTH) store(values + d, load(values + d) * shrink);
  maximum = highest;
}

// Buffers of one thread, sized once per call.
struct Buffers {
  std::vector<float> q, k, v, turned, scores;
};

template <typename T>
void attend_split(
    const Attention& a, int64_t b, int64_t h, int64_t split, const int64_t* depth, State state,
    Buffers& buffers) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, D = a.D, W = padded(D), length = a.lengths[b];
  const int64_t begin = split * SPLIT, end = std::min(begin + SPLIT, length);
  std::fill_n(state.values, R * W, 0.0f);
  std::fill_n(state.maximum, R, -INFINITE);
  std::fill_n(state.total, R, 0.0f);
  // The rows of the tail stand at length + depth >= length, so the first one sees farthest back.
  if (a.window > 0 && end - 1 <= length - a.window) return;

  // Where the rows of a block stand. The next block's are fetched while this one's are worked on: a
  // head's rows lie Hkv * D apart, too far for the processor to foresee.
  const T *k_rows[2][BLOCK], *v_rows[2][BLOCK];
  const auto find = [&](int64_t first, const T** k_found, const T** v_found) {
    const int32_t* table = a.page_table + b * a.table_stride;
    for (int64_t j = 0; j < std::min(BLOCK, end - first); ++j) {
      const int64_t page = table[(first + j) / a.page_size], row = (first + j) % a.page_size;
      k_found[j] = static_cast<const T*>(a.k_pages) + page * a.k_page_stride[0] +
          row * a.k_page_stride[1] + h * a.k_page_stride[2];
      v_found[j] = static_cast<const T*>(a.v_pages) + page * a.v_page_stride[0] +
          row * a.v_page_stride[1] + h * a.v_page_stride[2];
      prefetch(k_found[j], D * sizeof(T));
      prefetch(v_found[j], D * sizeof(T));
    }
  };
  find(begin, k_rows[0], v_rows[0]);

  float* q = buffers.q.data();
  for (int64_t n = 0; n < a.N; ++n)
    for (int64_t g = 0; g < G; ++g) {
      float* row = q + (n * G + g) * W;
      widen(
          static_cast<const T*>(a.q) + b * a.q_stride[0] + n * a.q_stride[1] +
              (h * G + g) * a.q_stride[2],
          D, row);
      for (int64_t d = 0; d < D; ++d) row[d] *= a.scale;
    }

  float *turned = buffers.turned.data(), *scores = buffers.scores.data();
  const float *k[BLOCK], *v[BLOCK];
  const bool turn = R >= ROWS;
  for (int64_t first = begin; first < end; first += BLOCK) {
    const int64_t count = std::min(BLOCK, end - first), parity = (first - begin) / BLOCK % 2;
    if (first + BLOCK < end) find(first + BLOCK, k_rows[1 - parity], v_rows[1 - parity]);
    for (int64_t j = 0; j < count; ++j) {
      k[j] = floats(k_rows[parity][j], D, buffers.k.data() + j * W);
      v[j] = floats(v_rows[parity][j], D, buffers.v.data() + j * W);
    }
    for (int64_t j = count; j < BLOCK; ++j) k[j] = k[0];  // scored, and masked below
    if (turn) transpose(k, W, turned);
    for (int64_t r = 0; r < R; r += ROWS) {
      const int64_t rows = std::min(ROWS, R - r);
      if (turn)
        for_rows(rows, [&](auto n) { score<n()>(q + r * W, turned, D, W, scores); });
      else
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < count; ++j)
            scores[i * BLOCK + j] = dot(q + (r + i) * W, k[j], W);
      for (int64_t i = 0; i < rows; ++i) {
        float* s = scores + i * BLOCK;
        if (a.softcap != 0.0f)
          for (int64_t j = 0; j < count; ++j) s[j] = capped(s[j], a.softcap);
        for (int64_t j = count; j < BLOCK; ++j) s[j] = -INFINITE;
        if (a.window > 0) {
          const int64_t oldest = length + depth[(r + i) / G] - a.window;  // not seen, nor before it
          for (int64_t j = 0; j < count && first + j <= oldest; ++j) s[j] = -INFINITE;
        }
        update(
            s, W, state.values + (r + i) * W, state.maximum[r + i], state.total[r + i]);
      }
      float* values = state.values + r * W;
      for_rows(rows, [&](auto n) { accumulate<n()>(scores, v, count, W, values); });
    }
  }
}

// Merge the splits' states of one tail row's G heads with the tail and the sinks, and write them.
template <typename T>
void merge(
    const Attention& a, int64_t b, int64_t h, int64_t n, const int64_t* depth,
    const State& states, int64_t splits, Buffers& buffers) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, D = a.D, W = padded(D);
  float *q = buffers.q.data(), *row = buffers.k.data(), *scores = buffers.scores.data();
  float* values = buffers.v.data();
  for (int64_t g = 0; g < G; ++g) {
    const int64_t head = h * G + g, r = n * G + g;
    widen(
        static_cast<const T*>(a.q) + b * a.q_stride[0] + n * a.q_stride[1] +
            head * a.q_stride[2],
        D, q);
    for (int64_t d = 0; d < D; ++d) q[d] *= a.scale;

    const float sink = a.sinks == nullptr ? -INFINITE : a.sinks[head];
    float highest = sink;
    for (int64_t s = 0; s < splits; ++s) {
      const float m = states.maximum[s * R + r];
      if (m > highest || m != m) highest = m;
    }
    for (int64_t j = 0; j < a.N; ++j) {
      const bool seen =
          a.mask[n * a.N + j] && (a.window == 0 || depth[n] - depth[j] < a.window);
      scores[j] = -INFINITE;
      if (!seen) continue;
      widen(
          static_cast<const T*>(a.tail_k) + b * a.tail_k_stride[0] + j * a.tail_k_stride[1] +
              h * a.tail_k_stride[2],
          D, row);
      scores[j] = capped(dot(q, row, W), a.softcap);
      if (scores[j] > highest || scores[j] != scores[j]) highest = scores[j];
    }

    float total = sink == -INFINITE ? 0.0f : exp_negative(sink - highest);
    std::fill_n(values, W, 0.0f);
    for (int64_t s = 0; s < splits; ++s) {
      if (states.maximum[s * R + r] == -INFINITE) continue;
      const float share = exp_negative(states.maximum[s * R + r] - highest);
      total += share * states.total[s * R + r];
      const float* from = states.values + (s * R + r) * W;
      for (int64_t d = 0; d < W; d += WIDTH)
        store(values + d, load(values + d) + share * load(from + d));
    }
    for (int64_t j = 0; j < a.N; ++j) {
      if (scores[j] == -INFINITE) continue;
      const float weight = exp_negative(scores[j] - highest);
      total += weight;
      widen(
          static_cast<const T*>(a.tail_v) + b * a.tail_v_stride[0] + j * a.tail_v_stride[1] +
              h * a.tail_v_stride[2],
          D, row);
      for (int64_t d = 0; d < W; d += WIDTH)
        store(values + d, load(values + d) + weight * load(row + d));
    }
    T* out = static_cast<T*>(a.out) + ((b * a.N + n) * a.Hq + head) * D;
    for (int64_t d = 0; d < D; ++d) from_float(values[d] / total, out[d]);
  }
}

template <typename T>
void attention_of(const Attention& a) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, W = padded(a.D);
  std::vector<int64_t> depth(a.N, -1), first(a.B + 1, 0);
  for (int64_t i = 0; i < a.N; ++i)
    for (int64_t j = 0; j < a.N; ++j) depth[i] += a.mask[i * a.N + j];
  for (int64_t b = 0; b < a.B; ++b)
    first[b + 1] = first[b] + (a.lengths[b] + SPLIT - 1) / SPLIT;

  // States of all splits: [B's splits, Hkv] of R rows each, in the order (b, h, split).
  const int64_t units = first[a.B] * a.Hkv;
  std::unique_ptr<float[]> memory(new float[units * R * (W + 2)]);
  State all{memory.get(), memory.get() + units * R * W, memory.get() + units * R * (W + 1)};
  const auto from = [&](int64_t unit) {
    return State{all.values + unit * R * W, all.maximum + unit * R, all.total + unit * R};
  };
  const auto buffers = [&] {
    Buffers mine;
    mine.q.resize(R * W);
    mine.k.resize(BLOCK * W);
    mine.v.resize(BLOCK * W);
    mine.turned.resize(BLOCK * W);
    mine.scores.resize(std::max(ROWS * BLOCK, a.N));
    return mine;
  };

  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    Buffers mine = buffers();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b =
          std::upper_bound(first.begin(), first.end(), unit / a.Hkv) - first.begin() - 1;
      const int64_t splits = first[b + 1] - first[b], within = unit - first[b] * a.Hkv;
      attend_split<T>(
          a, b, within / splits, within % splits, depth.data(), from(unit), mine);
    }
  });
  torch::stable::parallel_for(0, a.B * a.Hkv * a.N, 16, [&](int64_t begin, int64_t end) {
    Buffers mine = buffers();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit % a.N, h = unit / a.N % a.Hkv, b = unit / a.N / a.Hkv;
      const int64_t splits = first[b + 1] - first[b];
      const int64_t at = first[b] * a.Hkv + h * splits;
      merge<T>(a, b, h, n, depth.data(), from(at), splits, mine);
    }
  });
}

void attention(const Attention& a) {
  switch (a.type) {
    case Type::f32: return attention_of<float>(a);
    case Type::bf16: return attention_of<BFloat16>(a);
    case Type::f16: return attention_of<Half>(a);
  }
}

// topk_logprobs: one pass over the logits for the maximum, the sum of exponentials and the candidates.
// The vocabulary is cut into chunks of CHUNK; each keeps its k best in a heap whose root is the bar to
// clear, and the chunks are merged. Floor: V * itemsize bytes per row.
constexpr int64_t CHUNK = 8192;

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

template <typename T>
void scan(const T* logits, int64_t begin, int64_t end, int64_t k, Chunk& chunk) {
  float values[WIDTH];
  Vector top = splat(-INFINITE);
  Integers bad{};
  for (int64_t v = begin; v < end; v += WIDTH) {
    const int64_t count = std::min(WIDTH, end - v);
    for (int64_t i = 0; i < WIDTH; ++i)
      values[i] = i < count ? to_float(logits[v + i]) : -INFINITE;
    const Vector x = load(values);
    bad |= ~(x < INFINITE);
    top = x > top ? x : top;
    const bool room = int64_t(chunk.best.size()) < k;
    const float bar = room ? -INFINITE : chunk.best.front().logit;
    const Integers over = x > bar;
    bool any = room;
    for (int64_t i = 0; i < WIDTH; ++i) any |= over[i] != 0;
    if (!any) continue;
    for (int64_t i = 0; i < count; ++i) {
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
  for (int64_t v = begin; v < end; v += WIDTH) {  // the chunk is in the first cache level by now
    const int64_t count = std::min(WIDTH, end - v);
    for (int64_t i = 0; i < WIDTH; ++i)
      values[i] = i < count ? to_float(logits[v + i]) : -INFINITE;
    added += exp_negative(load(values) - chunk.maximum);
  }
  chunk.total = sum(added);
}

template <typename T>
void topk_of(const TopK& a) {
  const int64_t chunks = (a.V + CHUNK - 1) / CHUNK;
  std::vector<Chunk> scanned(a.B * chunks);
  torch::stable::parallel_for(0, a.B * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / chunks, first = unit % chunks * CHUNK;
      scan(
          static_cast<const T*>(a.logits) + b * a.stride, first,
          std::min(first + CHUNK, a.V), a.k, scanned[unit]);
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
      if (chunk.maximum > -INFINITE)
        total += chunk.total * exp_negative(chunk.maximum - maximum);
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

// select: reward = head . hidden, score = logprob + w * reward, first maximum of score / t + noise.
template <typename T>
void select_of(const Select& a) {
  const int64_t W = padded(a.H);
  std::vector<float> weight(W), row(W), rewards(a.k);
  widen(a.weight, a.H, weight.data());
  for (int64_t b = 0; b < a.B; ++b) {
    bool bad_reward = false, bad_logprob = false;
    for (int64_t i = 0; i < a.k; ++i) {
      widen(
          static_cast<const T*>(a.hidden) + b * a.hidden_stride[0] + i * a.hidden_stride[1],
          a.H, row.data());
      rewards[i] = dot(row.data(), weight.data(), W) + a.bias;
      bad_reward |= !(std::fabs(rewards[i]) < INFINITE);
      bad_logprob |= a.logprobs[b * a.k + i] != a.logprobs[b * a.k + i];
    }
    const float nan = std::numeric_limits<float>::quiet_NaN();
    int64_t best = 0;
    float best_key = -INFINITE, best_score = 0.0f;
    for (int64_t i = 0; i < a.k; ++i) {
      const float s = a.logprobs[b * a.k + i] + a.w[b] * rewards[i];
      const float key = s / a.temperature[b] + a.noise[b * a.noise_stride + i];
      // A NaN (inf - inf, say) is the largest, as it is for torch.argmax.
      if (i == 0 || key > best_key || (key != key && best_key == best_key)) {
        best = i;
        best_key = key;
        best_score = s;
      }
    }
    const bool broken = bad_reward || bad_logprob;
    if (broken) best = 0;
    a.branch[b] = best;
    a.reward[b] = bad_reward ? nan : rewards[best];
    a.score[b] = broken ? nan : best_score;
  }
}

void select(const Select& a) {
  switch (a.type) {
    case Type::f32: return select_of<float>(a);
    case Type::bf16: return select_of<BFloat16>(a);
    case Type::f16: return select_of<Half>(a);
  }
}

}  // namespace

extern const Kernels kernels = {attention, topk_logprobs, select};

}  // namespace ARGS_FAST_ISA
}  // namespace args_fast
