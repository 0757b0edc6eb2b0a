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

constexpr int64_t TILE_STEPS = 32;  // steps along k that a tile takes before the next one has its turn

// Weight rows in a tile of M rows of x: what fits the registers. A single row of x is waiting for
// memory alone, which is fastest in one stream that the processor foresees by itself.
constexpr int64_t MOST_WEIGHT_ROWS = 4;
constexpr int64_t weight_rows(int64_t M) {
  if (WIDTH == 16) return M == 1 ? 1 : MOST_WEIGHT_ROWS;
  return M <= 2 ? MOST_WEIGHT_ROWS : 2;
}

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

// Weight rows [begin, end) times the rows of a block, as Packed::times.
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

// All rows of x, packed in blocks by one thread, which has one of these at a time.
template <typename P>
class Packed {
 public:
  Packed(int64_t M, int64_t K) {
    typename P::Input* memory = scratch(M * (K + P::STEP));
    for (int64_t first = 0; first < M; first += BLOCK_ROWS) {
      blocks_.emplace_back(memory, std::min(BLOCK_ROWS, M - first), K);
      memory += blocks_.back().rows * blocks_.back().steps * P::STEP;
    }
  }

  template <typename T>
  void pack(int64_t m, const T* from) {
    blocks_[m / BLOCK_ROWS].pack(m % BLOCK_ROWS, from);
  }

  // Weight rows [begin, end) times x: emit(m, n, sums, count) for rows n to n + count.
  template <typename Emit>
  void times(
      const typename P::Weight* weight, int64_t stride, int64_t begin, int64_t end,
      const Emit& emit) const {
    for (size_t block = 0; block < blocks_.size(); ++block)
      product(
          blocks_[block], weight, stride, begin, end,
          [&](int64_t m, int64_t n, const float* sums, int64_t count) {
            emit(block * BLOCK_ROWS + m, n, sums, count);
          });
  }

  // The same for weights [K, N].
  template <typename Emit>
  void times_columns(
      const typename P::Weight* weight, int64_t stride, int64_t begin, int64_t end,
      const Emit& emit) const {
    for (size_t block = 0; block < blocks_.size(); ++block)
      column_product(
          blocks_[block], weight, stride, begin, end,
          [&](int64_t m, int64_t n, const float* sums, int64_t count) {
            emit(block * BLOCK_ROWS + m, n, sums, count);
          });
  }

 private:
  static typename P::Input* scratch(int64_t size) {
    thread_local std::vector<typename P::Input> memory;
    const int64_t room = size + 64 / sizeof(typename P::Input);
    if (int64_t(memory.size()) < room) memory.resize(room);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory.data());
    // Vectors do not cross cache lines.
    return memory.data() + (-begin % 64) / sizeof(typename P::Input);
  }

  std::vector<PackedRows<P>> blocks_;
};

constexpr int64_t WORTH_A_THREAD = 1 << 15;  // weights for which another thread is woken
constexpr int64_t SHARE = 8;                 // weight rows are handed to threads in so many

template <typename P, typename T>
void linear_of(const Linear& a) {
  const T* bias = static_cast<const T*>(a.bias);
  const int64_t shares = (a.N + SHARE - 1) / SHARE;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / std::max<int64_t>(1, SHARE * a.K));
  torch::stable::parallel_for(0, shares, grain, [&](int64_t first, int64_t last) {
    Packed<P> x(a.M, a.K);
    for (int64_t m = 0; m < a.M; ++m) x.pack(m, static_cast<const T*>(a.x) + m * a.x_stride);
    x.times(
        static_cast<const typename P::Weight*>(a.weight), a.weight_stride, first * SHARE,
        std::min(last * SHARE, a.N), [&](int64_t m, int64_t n, const float* sums, int64_t count) {
          T* out = static_cast<T*>(a.out) + m * a.N + n;
          for (int64_t i = 0; i < count; ++i)
            from_float(bias ? sums[i] + to_float(bias[n + i]) : sums[i], out[i]);
        });
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
