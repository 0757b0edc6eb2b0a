// linear: out[m, n] = sum over k of x[m, k] * weight[n, k], plus bias[n], for few rows of x.
//
// x [M, K], weight [N, K] with contiguous rows, read where they lie; out [M, N]. All are float32,
// bfloat16 or float16, and sums are float32. Rows of x are taken in blocks of at most 64, which are
// packed once per thread; R weight rows at a time meet all rows of a block, in tiles whose sums stay in
// registers. Each pair (m, n) has one vector of partial sums, to which products are added in the order
// of k and whose lanes are added in the order of sum(): a row's bits depend on neither M, nor the other
// rows, nor the number of threads.
// Floor: N * K * itemsize bytes for each block of rows; 2 * M * N * K flops.

namespace args_fast::ARGS_FAST_ISA {
namespace {

constexpr int64_t BLOCK_ROWS = 64;  // rows of x that share one reading of the weights
constexpr int64_t TILE_ROWS = 6;    // rows of x in a tile, at most
constexpr int64_t TILE_STEPS = 32;  // steps along k that a tile takes before the next one has its turn

// Weights of type T as floats, times floats.
template <typename T>
struct Widened {
  typedef T Weight;
  typedef float Input;
  static constexpr int64_t STEP = WIDTH;  // elements of k per vector
  typedef Vector Register;
  static Register weights(const Weight* from) { return widened(from); }
  static Register inputs(const Input* from) { return load(from); }
  static Vector add(Vector sum, Register w, Register x) { return multiply_add(w, x, sum); }
};

#ifdef ARGS_FAST_BF16
// Pairs of bfloat16: each lane adds two products, the even one first.
struct Pairs {
  typedef BFloat16 Weight;
  typedef BFloat16 Input;
  static constexpr int64_t STEP = 2 * WIDTH;
  typedef __m512bh Register;
  static Register weights(const Weight* from) { return Register(_mm512_loadu_si512(from)); }
  static Register inputs(const Input* from) { return Register(_mm512_loadu_si512(from)); }
  static Vector add(Vector sum, Register w, Register x) {
    return Vector(_mm512_dpbf16_ps(__m512(sum), w, x));
  }
};
typedef Pairs OfBFloat16;
#else
typedef Widened<BFloat16> OfBFloat16;
#endif

// Weight rows in a tile of M rows of x: what fits the registers. A single row of x is waiting for
// memory alone, which is fastest in one stream that the processor foresees by itself.
constexpr int64_t MOST_WEIGHT_ROWS = 4;
constexpr int64_t weight_rows(int64_t M) {
  if (WIDTH == 16) return M == 1 ? 1 : MOST_WEIGHT_ROWS;
  return M <= 2 ? MOST_WEIGHT_ROWS : 2;
}

// Rows of x as the tiles read them: for each tile, for each step, a vector of each of its rows.
template <typename P>
class PackedRows {
 public:
  typedef typename P::Input Input;

  PackedRows(int64_t rows, int64_t K)
      : rows(rows), K(K), steps((K + P::STEP - 1) / P::STEP),
        tiles((rows + TILE_ROWS - 1) / TILE_ROWS), memory_(scratch(rows * steps * P::STEP)) {}

  int64_t first_row(int64_t tile) const { return rows * tile / tiles; }
  int64_t tile_rows(int64_t tile) const { return first_row(tile + 1) - first_row(tile); }
  const Input* tile(int64_t tile) const { return memory_ + first_row(tile) * steps * P::STEP; }

  template <typename T>
  void pack(int64_t row, const T* from) {
    int64_t tile = row * tiles / rows;
    while (first_row(tile + 1) <= row) ++tile;
    const int64_t count = tile_rows(tile);
    Input* to = memory_ + first_row(tile) * steps * P::STEP + (row - first_row(tile)) * P::STEP;
    for (int64_t step = 0; step < steps; ++step, to += count * P::STEP) {
      const int64_t filled = std::min(P::STEP, K - step * P::STEP);
      copy(from + step * P::STEP, filled, to);
    }
  }

  const int64_t rows, K, steps, tiles;

 private:
  static Input* scratch(int64_t size) {
    thread_local std::vector<Input> memory;
    const int64_t room = size + 64 / sizeof(Input);
    if (int64_t(memory.size()) < room) memory.resize(room);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + (-begin % 64) / sizeof(Input);  // vectors do not cross cache lines
  }

  template <typename T>
  static void copy(const T* from, int64_t filled, float* to) {
    widen(from, filled, to);
    for (int64_t i = padded(filled); i < P::STEP; ++i) to[i] = 0.0f;
  }
#ifdef ARGS_FAST_BF16
  static void copy(const BFloat16* from, int64_t filled, BFloat16* to) {
    for (int64_t i = 0; i < P::STEP; ++i) to[i] = i < filled ? from[i] : BFloat16{0};
  }
  static void copy(const float* from, int64_t filled, BFloat16* to) {
    for (int64_t i = 0; i < filled; ++i) from_float(from[i], to[i]);
    for (int64_t i = filled; i < P::STEP; ++i) to[i] = BFloat16{0};
  }
#endif

  Input* const memory_;
};

// Add `steps` steps of M rows of x times R weight rows to sums [M, R]. The first tile of a block
// fetches the weights that lie `ahead`, for itself and the others.
template <typename P, int64_t M, int64_t R, bool FIRST>
void tile_of(
    const typename P::Input* x, const typename P::Weight* weight, int64_t stride, int64_t steps,
    int64_t ahead, Vector* sums) {
  Vector sum[M][R];
#pragma GCC unroll 8
  for (int64_t m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) sum[m][r] = sums[m * R + r];
  for (int64_t step = 0; step < steps; ++step) {
    typename P::Register w[R];
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      const typename P::Weight* from = weight + r * stride + step * P::STEP;
      w[r] = P::weights(from);
      if (FIRST && R > 1) __builtin_prefetch(from + ahead);
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < M; ++m) {
      const typename P::Register row = P::inputs(x + (step * M + m) * P::STEP);
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) sum[m][r] = P::add(sum[m][r], w[r], row);
    }
  }
#pragma GCC unroll 8
  for (int64_t m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) sums[m * R + r] = sum[m][r];
}

template <typename P, int64_t R, bool FIRST>
void tile_of_rows(
    int64_t rows, const typename P::Input* x, const typename P::Weight* weight, int64_t stride,
    int64_t steps, int64_t ahead, Vector* sums) {
  switch (rows) {
    case 1: return tile_of<P, 1, R, FIRST>(x, weight, stride, steps, ahead, sums);
    case 2: return tile_of<P, 2, R, FIRST>(x, weight, stride, steps, ahead, sums);
    case 3: return tile_of<P, 3, R, FIRST>(x, weight, stride, steps, ahead, sums);
    case 4: return tile_of<P, 4, R, FIRST>(x, weight, stride, steps, ahead, sums);
    case 5: return tile_of<P, 5, R, FIRST>(x, weight, stride, steps, ahead, sums);
    default: return tile_of<P, TILE_ROWS, R, FIRST>(x, weight, stride, steps, ahead, sums);
  }
}

// R weight rows, beginning with `weight`, times all rows of x: emit(m, sums of R) for each m.
template <typename P, int64_t R, typename Emit>
void weight_rows_times(
    const PackedRows<P>& x, const typename P::Weight* weight, int64_t stride, const Emit& emit) {
  constexpr int64_t STEP = P::STEP, ROOM = TILE_ROWS * MOST_WEIGHT_ROWS + WIDTH;
  Vector sums[(BLOCK_ROWS + TILE_ROWS - 1) / TILE_ROWS][ROOM];
  for (int64_t t = 0; t < x.tiles; ++t)
    for (int64_t i = 0; i < x.tile_rows(t) * R + WIDTH; ++i) sums[t][i] = Vector{};
  const int64_t whole = x.K / STEP, ahead = R * stride;
  const int64_t chunk = x.tiles == 1 ? whole : TILE_STEPS;
  for (int64_t step = 0; step < whole; step += chunk)
    for (int64_t t = 0; t < x.tiles; ++t) {
      const int64_t rows = x.tile_rows(t), steps = std::min(chunk, whole - step);
      const auto* from = x.tile(t) + step * rows * STEP;
      const auto* w = weight + step * STEP;
      if (t == 0)
        tile_of_rows<P, R, true>(rows, from, w, stride, steps, ahead, sums[t]);
      else
        tile_of_rows<P, R, false>(rows, from, w, stride, steps, ahead, sums[t]);
    }
  if (whole < x.steps) {  // what is left of the weight rows, padded with zeros as x is
    typename P::Weight padded_weights[R * STEP] = {};
    for (int64_t r = 0; r < R; ++r)
      for (int64_t i = 0; whole * STEP + i < x.K; ++i)
        padded_weights[r * STEP + i] = weight[r * stride + whole * STEP + i];
    for (int64_t t = 0; t < x.tiles; ++t) {
      const int64_t rows = x.tile_rows(t);
      const auto* from = x.tile(t) + whole * rows * STEP;
      tile_of_rows<P, R, false>(rows, from, padded_weights, STEP, 1, 0, sums[t]);
    }
  }
  for (int64_t t = 0; t < x.tiles; ++t) {
    const int64_t first = x.first_row(t), count = x.tile_rows(t) * R;
    float totals[ROOM];
    for (int64_t i = 0; i < count; i += WIDTH) store(totals + i, sums_of(sums[t] + i));
    for (int64_t m = 0; m * R < count; ++m) emit(first + m, totals + m * R);
  }
}

// Weight rows [begin, end) times all rows of x: emit(m, n, sums, count) for rows n to n + count.
template <typename P, typename Emit>
void product(
    const PackedRows<P>& x, const typename P::Weight* weight, int64_t stride, int64_t begin,
    int64_t end, const Emit& emit) {
  const int64_t R = weight_rows(x.tile_rows(0));
  int64_t n = begin;
  for (; n + R <= end; n += R) {
    const auto* from = weight + n * stride;
    const auto write = [&](int64_t m, const float* sums) { emit(m, n, sums, R); };
    switch (R) {
      case 1: weight_rows_times<P, 1>(x, from, stride, write); break;
      case 2: weight_rows_times<P, 2>(x, from, stride, write); break;
      default: weight_rows_times<P, MOST_WEIGHT_ROWS>(x, from, stride, write);
    }
  }
  for (; n < end; ++n)
    weight_rows_times<P, 1>(
        x, weight + n * stride, stride,
        [&](int64_t m, const float* sums) { emit(m, n, sums, 1); });
}

constexpr int64_t WORTH_A_THREAD = 1 << 15;  // weights for which another thread is woken
constexpr int64_t SHARE = 8;                 // weight rows are handed to threads in so many

template <typename P, typename T>
void linear_of(const Linear& a) {
  const auto* weight = static_cast<const typename P::Weight*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  const int64_t shares = (a.N + SHARE - 1) / SHARE;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / std::max<int64_t>(1, SHARE * a.K));
  torch::stable::parallel_for(0, shares, grain, [&](int64_t first, int64_t last) {
    for (int64_t block = 0; block < a.M; block += BLOCK_ROWS) {
      PackedRows<P> x(std::min(BLOCK_ROWS, a.M - block), a.K);
      for (int64_t m = 0; m < x.rows; ++m)
        x.pack(m, static_cast<const T*>(a.x) + (block + m) * a.x_stride);
      product(
          x, weight, a.weight_stride, first * SHARE, std::min(last * SHARE, a.N),
          [&](int64_t m, int64_t n, const float* sums, int64_t count) {
            T* out = static_cast<T*>(a.out) + (block + m) * a.N + n;
            for (int64_t i = 0; i < count; ++i)
              from_float(bias ? sums[i] + to_float(bias[n + i]) : sums[i], out[i]);
          });
    }
  });
}

void linear(const Linear& a) {
  switch (a.type) {
    case Type::f32: return linear_of<Widened<float>, float>(a);
    case Type::bf16: return linear_of<OfBFloat16, BFloat16>(a);
    case Type::f16: return linear_of<Widened<Half>, Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
