// linear: out[m, n] = sum over k of x[m, k] * weight[n, k], plus bias[n], for few rows of x.
//
// x [M, K], weight [N, K] with contiguous rows, read where they lie; out [M, N]. All are float32,
// bfloat16 or float16, and sums are float32. Weights may also be bfloat16 or float16 where the rest is
// float32, or integers of 8 bits, of which those of row n stand for scale[n] times their value; x is then
// multiplied as floats. Rows of x are taken in blocks of at most 64, which are packed once per thread and
// take turns. A block meets WIDTH weight rows at a time, R of them in a tile with a few rows of x whose
// sums stay in registers. Each pair (m, n) has one vector of partial sums, to which products are added in
// the order of k, and whose lanes are added in the same order for all: a row's bits depend on neither M,
// nor the other rows, nor the number of threads.
// Floor: N * K * itemsize bytes; 2 * M * N * K flops.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// Steps along k that all rows of a block take before other weight rows have their turn: so many that
// half of the first cache holds them, but no fewer than make up for storing and loading the sums.
constexpr int64_t CACHED_STEPS = 512, LEAST_STEPS = 48;

// Weights are fetched this many bytes ahead, times the weight rows of a tile and the columns of x; in the
// one stream of a single row, so many in all.
constexpr int64_t FETCH_AHEAD = 4, STREAM_AHEAD = 6144;

// Weight rows in a tile of M rows of x: what fits the registers. A single row of x is waiting for memory
// alone: where its weights go past the caches one stream is the fastest. Where a vector takes less than a
// line of a cache the next one comes so fast that one sum would wait for itself.
constexpr int64_t MOST_WEIGHT_ROWS = 4, LINE = 64;
template <typename P>
constexpr int64_t weight_rows(int64_t M) {
  const bool stream = M == 1 && PAST_CACHES && P::STEP * sizeof(typename P::Weight) == LINE;
  if (WIDTH == 16) return stream ? 1 : MOST_WEIGHT_ROWS;
  return M <= 2 ? MOST_WEIGHT_ROWS : 2;
}

// Add `steps` steps of M rows of x times R weight rows to sums [M, WIDTH], the first R columns of it,
// and fetch as much of FETCHED weight rows that come later. After the last steps four sums are folded
// into one vector.
template <typename P, int64_t M, int64_t R, int64_t FETCHED>
void tile_of(
    const typename P::Input* x, const typename P::Weight* weight, const typename P::Weight* later,
    int64_t stride, int64_t steps, bool fresh, bool last, Vector* sums) {
  Vector sum[M][R];
#pragma GCC unroll 8
  for (int64_t m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) sum[m][r] = fresh ? Vector{} : sums[m * WIDTH + r];
  for (int64_t step = 0; step < steps; ++step) {
    typename P::Register w[R];
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      w[r] = P::weights(weight + r * stride + step * P::STEP);
      constexpr int WHERE = FETCHED == 1 ? WITH_MANY_ROWS : WITH_FEW_ROWS;
      if (M == 1 && R == 1)
        __builtin_prefetch(
            weight + step * P::STEP + STREAM_AHEAD / sizeof(typename P::Weight), 0, WITH_FEW_ROWS);
      else if (r < FETCHED)
        __builtin_prefetch(later + r * stride + step * P::STEP, 0, WHERE);
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < M; ++m) {
      const typename P::Register row = P::inputs(x + (step * M + m) * P::STEP);
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) sum[m][r] = P::add(sum[m][r], w[r], row);
    }
  }
  if constexpr (R == 4)
    if (last) {
#pragma GCC unroll 8
      for (int64_t m = 0; m < M; ++m)
        sums[m * WIDTH] = folded(sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
      return;
    }
#pragma GCC unroll 8
  for (int64_t m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) sums[m * WIDTH + r] = sum[m][r];
}

template <typename P, int64_t R, int64_t FETCHED>
void tile_of_rows(
    int64_t rows, const typename P::Input* x, const typename P::Weight* weight,
    const typename P::Weight* later, int64_t stride, int64_t steps, bool fresh, bool last,
    Vector* sums) {
  switch (rows) {
    case 1: return tile_of<P, 1, R, FETCHED>(x, weight, later, stride, steps, fresh, last, sums);
    case 2: return tile_of<P, 2, R, FETCHED>(x, weight, later, stride, steps, fresh, last, sums);
    case 3: return tile_of<P, 3, R, FETCHED>(x, weight, later, stride, steps, fresh, last, sums);
    case 4: return tile_of<P, 4, R, FETCHED>(x, weight, later, stride, steps, fresh, last, sums);
    case 5: return tile_of<P, 5, R, FETCHED>(x, weight, later, stride, steps, fresh, last, sums);
    default:
      return tile_of<P, TILE_ROWS, R, FETCHED>(x, weight, later, stride, steps, fresh, last, sums);
  }
}

// A part of the products of a block: R weight rows times the rows of x from a tile on, `steps` steps
// along k.
template <typename P>
struct Part {
  int64_t step, steps;              // along k
  bool fresh, last;                 // whether it is the first part of its rows, and the last
  const typename P::Weight* later;  // where the same part of weight rows that come later begins
};

template <typename P, int64_t R, typename X>
void weight_rows_times(
    const X& x, int64_t first_tile, const typename P::Weight* weight, int64_t stride,
    const Part<P>& part, Vector* sums) {
  // The tiles share the fetching, so that memory is never waited for, and never idle. A single row
  // of x with a single weight row fetches its own stream.
  const int64_t tiles = x.tiles - first_tile, share = R == 1 ? 0 : (R + tiles - 1) / tiles;
  for (int64_t t = first_tile; t < x.tiles; ++t) {
    const int64_t rows = x.tile_rows(t), fetched_before = (t - first_tile) * share;
    const auto run = [&](auto fetched) {
      tile_of_rows<P, R, fetched()>(
          rows, x.tile(t) + part.step * rows * P::STEP, weight,
          part.later + fetched_before * stride, stride, part.steps, part.fresh, part.last,
          sums + x.first_row(t) * WIDTH);
    };
    if (part.later == nullptr || fetched_before >= R || share == 0)
      run(std::integral_constant<int64_t, 0>{});
    else if (share == R)
      run(std::integral_constant<int64_t, R>{});
    else if (share == 2)
      run(std::integral_constant<int64_t, 2>{});
    else
      run(std::integral_constant<int64_t, 1>{});
  }
}

// The same for `count` weight rows, R at most: one by one where they are fewer than R.
template <typename P, typename X>
void rows_times(
    const X& x, int64_t tile, const typename P::Weight* weight, int64_t stride, int64_t R,
    int64_t count, const Part<P>& part, Vector* sums) {
  if (R == MOST_WEIGHT_ROWS && count >= R)
    return weight_rows_times<P, MOST_WEIGHT_ROWS>(x, tile, weight, stride, part, sums);
  if (R == 2 && count >= R) return weight_rows_times<P, 2>(x, tile, weight, stride, part, sums);
  for (int64_t r = 0; r < std::min(R, count); ++r)
    weight_rows_times<P, 1>(x, tile, weight + r * stride, stride, part, sums + r);
}

// Up to WIDTH weight rows times the rows of x from a tile on: sums [rows of x, WIDTH], of which those
// of R = 4 weight rows that were taken together are folded.
template <typename P, typename X>
void weight_block_times(
    const X& x, int64_t tile, const typename P::Weight* weight, int64_t stride, int64_t R,
    int64_t count, Vector* sums) {
  constexpr int64_t STEP = P::STEP;
  const int64_t whole = x.K / STEP, groups = (count + R - 1) / R;
  // Parts of x stay in the first cache while all these weight rows meet them.
  const int64_t most = std::max(LEAST_STEPS, CACHED_STEPS / x.rows);
  const int64_t chunks = x.rows == 1 ? 1 : std::max<int64_t>(1, (whole + most - 1) / most);
  const auto first_step = [&](int64_t chunk) { return whole * chunk / chunks; };
  const int64_t ahead = FETCH_AHEAD / int64_t(sizeof(typename P::Weight));
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t at = chunk * groups + group + ahead, next = at / groups;
      const int64_t row = (next >= chunks ? WIDTH : 0) + at % groups * R;
      const Part<P> part = {
          first_step(chunk), first_step(chunk + 1) - first_step(chunk), chunk == 0,
          chunk + 1 == chunks && whole == x.steps,
          weight + row * stride + first_step(next % chunks) * STEP};
      rows_times<P>(
          x, tile, weight + group * R * stride + part.step * STEP, stride, R, count - group * R,
          part, sums + group * R);
    }
  if (whole == x.steps) return;
  // What is left of the weight rows, padded with zeros as x is.
  typename P::Weight left[WIDTH * STEP] = {};
  for (int64_t r = 0; r < count; ++r)
    std::copy_n(weight + r * stride + whole * STEP, x.K - whole * STEP, left + r * STEP);
  const Part<P> part = {whole, 1, whole == 0, true, nullptr};
  for (int64_t r = 0; r < count; r += R)
    rows_times<P>(x, tile, left + r * STEP, STEP, R, count - r, part, sums + r);
}

// Weight rows [begin, end) times the rows of a block from first_row on, as Packed::times. The tile of
// first_row begins before it, perhaps.
template <typename P, typename X, typename Emit>
void product(
    P, const X& x, int64_t first_row, const typename P::Weight* weight, int64_t stride,
    int64_t begin, int64_t end, const Emit& emit) {
  const int64_t R = weight_rows<P>(x.tile_rows(0)), tile = x.tile_of(first_row);
  Vector sums[BLOCK_ROWS * WIDTH];
  for (int64_t n = begin; n < end; n += WIDTH) {
    const int64_t count = std::min(WIDTH, end - n), folded_rows = R == 4 ? count / 4 * 4 : 0;
    weight_block_times<P>(x, tile, weight + n * stride, stride, R, count, sums);
    for (int64_t m = first_row; m < x.rows; ++m) {
      Vector* row = sums + m * WIDTH;
      for (int64_t r = count; r < WIDTH; ++r) row[r] = Vector{};
      for (int64_t r = folded_rows; r < WIDTH; r += 4)
        row[r] = folded(row[r], row[r + 1], row[r + 2], row[r + 3]);
      float totals[WIDTH];
      store(totals, sums_of_folded(row));
      emit(m, n, totals, count);
    }
  }
}

constexpr int64_t TURN = 64;  // weight rows for which all blocks have their turn

// All rows of x, packed in blocks by one thread, which has one of these at a time.
template <typename P>
class Packed {
 public:
  Packed(int64_t M, int64_t K) {
    const auto rows = [&](int64_t first) { return std::min(BLOCK_ROWS, M - first); };
    int64_t size = 0;
    for (int64_t first = 0; first < M; first += BLOCK_ROWS)
      size += PackedRows<P>::size(rows(first), K);
    typename P::Input* memory = scratch(size);
    for (int64_t first = 0; first < M; first += BLOCK_ROWS) {
      blocks_.emplace_back(memory, rows(first), K);
      memory += PackedRows<P>::size(rows(first), K);
    }
  }

  template <typename T>
  void pack(int64_t m, const T* from) {
    blocks_[m / BLOCK_ROWS].pack(m % BLOCK_ROWS, from);
  }

  // Weight rows [begin, end) times x: emit(m, n, sums, count) for rows n to n + count. The weights may
  // be of another kind, Q, that is multiplied with the same x; rows of x before first_row are left out.
  template <typename Q = P, typename Emit>
  void times(
      const typename Q::Weight* weight, int64_t stride, int64_t begin, int64_t end,
      const Emit& emit, int64_t first_row = 0) const {
    const int64_t first_block = first_row / BLOCK_ROWS, blocks = blocks_.size();
    // Blocks take turns, so that the weights are read from memory once.
    const int64_t turn = blocks - first_block > 1 ? TURN : end - begin;
    for (int64_t n = begin; n < end; n += turn)
      for (int64_t block = first_block; block < blocks; ++block)
        product(
            Q{}, blocks_[block], std::max<int64_t>(first_row - block * BLOCK_ROWS, 0), weight,
            stride, n, std::min(n + turn, end),
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
constexpr int64_t SHARE = 16;                // weight rows are handed to threads in so many

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
          const Vector more = bias == nullptr ? Vector{} : load_part(bias + n, count);
          const Vector v = load(sums);
          const float* scale = a.scale == nullptr ? nullptr : a.scale + n;
          store_part(out, scale ? multiply_add(v, load_part(scale, count), more) : v + more, count);
        });
  });
}

// Call f(storage) with how weights are stored, as a constant, next to rows of type T.
template <typename T, typename F>
void with_storage(Storage storage, const F& f) {
  switch (storage) {
    case Storage::rows: return f(std::integral_constant<Storage, Storage::rows>{});
    case Storage::columns: return f(std::integral_constant<Storage, Storage::columns>{});
    case Storage::int8: return f(std::integral_constant<Storage, Storage::int8>{});
    default: break;
  }
  if constexpr (std::is_same_v<T, float>) {
    if (storage == Storage::bfloat16)
      f(std::integral_constant<Storage, Storage::bfloat16>{});
    else
      f(std::integral_constant<Storage, Storage::float16>{});
  }
}

template <typename T>
void linear_of_type(const Linear& a) {
  with_storage<T>(
      a.storage, [&](auto storage) { linear_of<typename ProductOf<T, storage()>::Product, T>(a); });
}

void linear(const Linear& a) {
  switch (a.type) {
    case Type::f32: return linear_of_type<float>(a);
    case Type::bf16: return linear_of_type<BFloat16>(a);
    case Type::f16: return linear_of_type<Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
