// The product of linear.h for weights that lie transposed, [K, N], as GPT-2 keeps them.
//
// Vectors stand along n: a panel of columns is walked from its first row to its last, and each row of
// x adds x[m, k] times the panel's row k. Products are added in the order of k, so the bits of a row do
// not depend on the others here either.
// Floor: as in linear.h.

namespace args_fast::ARGS_FAST_ISA {
namespace {

constexpr int64_t PANEL = 4;         // vectors of a panel, for up to TILE_ROWS rows of x
constexpr int64_t SINGLE_PANEL = 8;  // and for a single one
constexpr int64_t AHEAD_ROWS = 8;    // rows of the weights that are fetched ahead

// Add the rows [first, last) of C vectors of columns, times M rows of x, to sums [M, C]. The last of
// the vectors has `count` columns.
template <typename T, int64_t M, int64_t C>
void column_tile(
    const float* x, const T* weight, int64_t stride, int64_t first, int64_t last, int64_t count,
    Vector* sums) {
  Vector sum[M][C];
#pragma GCC unroll 8
  for (int64_t m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) sum[m][c] = sums[m * C + c];
  for (int64_t k = first; k < last; ++k) {
    const T* from = weight + k * stride;
    const float* row = x + (k / WIDTH * M) * WIDTH + k % WIDTH;
    Vector w[C];
    if (count == WIDTH) {
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        w[c] = widened(from + c * WIDTH);
        // Several tiles of rows come back to them.
        __builtin_prefetch(
            from + AHEAD_ROWS * stride + c * WIDTH, 0, M == 1 ? WITH_FEW_ROWS : WITH_MANY_ROWS);
      }
    } else {  // C is 1
      T part[WIDTH] = {};
      std::memcpy(part, from, count * sizeof(T));
      w[0] = widened(part);
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < M; ++m) {
      const Vector factor = splat(row[m * WIDTH]);
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) sum[m][c] = multiply_add(factor, w[c], sum[m][c]);
    }
  }
#pragma GCC unroll 8
  for (int64_t m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) sums[m * C + c] = sum[m][c];
}

// A panel of C vectors times all rows of x: emit(m, sums of C vectors) for each m.
template <typename T, int64_t C, typename Emit>
void panel_times(
    const PackedRows<Widened<T>>& x, const T* weight, int64_t stride, int64_t count,
    const Emit& emit) {
  constexpr int64_t TILES = (BLOCK_ROWS + TILE_ROWS - 1) / TILE_ROWS;
  Vector sums[TILES][C == SINGLE_PANEL ? C : TILE_ROWS * C];
  for (int64_t t = 0; t < x.tiles; ++t)
    for (int64_t i = 0; i < x.tile_rows(t) * C; ++i) sums[t][i] = Vector{};
  const int64_t chunk = x.tiles == 1 ? x.K : 4 * WIDTH;
  for (int64_t k = 0; k < x.K; k += chunk)
    for (int64_t t = 0; t < x.tiles; ++t) {
      const int64_t last = std::min(x.K, k + chunk);
      const float* from = x.tile(t);
      const auto run = [&](auto m) {
        column_tile<T, m(), C>(from, weight, stride, k, last, count, sums[t]);
      };
      if constexpr (C == SINGLE_PANEL) {
        run(std::integral_constant<int64_t, 1>{});
      } else {
        switch (x.tile_rows(t)) {
          case 1: run(std::integral_constant<int64_t, 1>{}); break;
          case 2: run(std::integral_constant<int64_t, 2>{}); break;
          case 3: run(std::integral_constant<int64_t, 3>{}); break;
          case 4: run(std::integral_constant<int64_t, 4>{}); break;
          case 5: run(std::integral_constant<int64_t, 5>{}); break;
          default: run(std::integral_constant<int64_t, TILE_ROWS>{});
        }
      }
    }
  for (int64_t t = 0; t < x.tiles; ++t)
    for (int64_t m = 0; m < x.tile_rows(t); ++m) {
      float totals[C * WIDTH];
      std::memcpy(totals, sums[t] + m * C, sizeof totals);
      emit(x.first_row(t) + m, totals);
    }
}

// Columns [begin, end) times the rows of a block, as product() in linear.h.
template <typename T, typename Emit>
void column_product(
    const PackedRows<Widened<T>>& x, const T* weight, int64_t stride, int64_t begin, int64_t end,
    const Emit& emit) {
  int64_t n = begin;
  const auto panels = [&](auto vectors) {
    constexpr int64_t C = vectors();
    for (; n + C * WIDTH <= end; n += C * WIDTH)
      panel_times<T, C>(x, weight + n, stride, WIDTH, [&](int64_t m, const float* sums) {
        emit(m, n, sums, C * WIDTH);
      });
  };
  if (x.rows == 1) panels(std::integral_constant<int64_t, SINGLE_PANEL>{});
  panels(std::integral_constant<int64_t, PANEL>{});
  panels(std::integral_constant<int64_t, 1>{});
  if (n < end)
    panel_times<T, 1>(x, weight + n, stride, end - n, [&](int64_t m, const float* sums) {
      emit(m, n, sums, end - n);
    });
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
