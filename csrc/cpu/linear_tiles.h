// The product of linear.h for bfloat16 in tiles (AMX): 16 weight rows times 16 rows of x at once.
//
// A tile of weights is 16 rows of them, STEP elements long, read where they lie. A line of a tile of x has
// the same pair of elements of 16 rows. Where there are fewer rows the other places are multiplied with
// whatever stands there, and no one reads the result. Floats are multiplied in three parts (tiles.h). The
// sums of a row are added to in the order of k, and at each step in that of the parts, whatever rows are
// with it.
// Floor: as in linear.h. A product of tiles takes 16 cycles for a kilobyte of weights, which is faster than
// memory gives them.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// Up to BLOCK_ROWS rows of x, packed one after the other: for each 16 of them, for each step, a tile of
// each part. A single row lies as it is: the lines of its tiles begin a pair apart, and what they have
// after it counts for nothing.
template <int64_t PARTS>
class PackedRows<Tiles<PARTS>> {
  static constexpr int64_t STEP = TILE_STEP, PAIR = 2;

 public:
  typedef BFloat16 Input;

  PackedRows(Input* memory, int64_t rows, int64_t K)
      : rows(rows), K(K), steps((K + STEP - 1) / STEP), line(rows == 1 ? PAIR : PAIR * SIDE),
        memory_(memory), tile_(rows == 1 ? STEP : TILE_SIZE) {}

  // Elements in memory.
  static int64_t size(int64_t rows, int64_t K) {
    const int64_t tiles = (K + STEP - 1) / STEP * PARTS;
    return rows == 1 ? (tiles + 1) * STEP : (rows + SIDE - 1) / SIDE * tiles * TILE_SIZE;
  }

  // Where the tile of 16 rows, a step and a part begins.
  Input* tile(int64_t row, int64_t step, int64_t part = 0) const {
    return memory_ + ((row / SIDE * steps + step) * PARTS + part) * tile_;
  }

  template <typename T>
  void pack(int64_t row, const T* from) {
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t filled = std::min(STEP, K - step * STEP);
      pack_parts(from + step * STEP, filled, tile(row, step) + row % SIDE * STEP);
      if (rows == 1 || (row % SIDE < SIDE - 1 && row < rows - 1)) continue;
      for (int64_t part = 0; part < PARTS; ++part) turn_pairs(tile(row, step, part));
    }
  }

  const int64_t rows, K, steps, line;  // line: elements from one to the next

 private:
  template <typename T>
  void pack_parts(const T* from, int64_t filled, Input* to) const {
    if constexpr (PARTS == 1) {
      pack_step<Tiles<PARTS>>(from, filled, to);
    } else {
      const float* const rest = from + WIDTH;
      split_floats<PARTS>(
          load_part(from, filled), filled > WIDTH ? load_part(rest, filled - WIDTH) : Vector{}, to,
          tile_);
    }
  }

  Input* const memory_;
  const int64_t tile_;
};

// Weights are fetched so many steps ahead, as measured on an Intel Xeon: earlier and later are slower.
template <int64_t PARTS>
constexpr int64_t TILES_AHEAD = PARTS == 1 ? 6 : 5;

// R times 16 weight rows times G times 16 rows of x, from `row` on: sums [R, G, 16 weight rows, 16 rows
// of x]. `left` is what the weight rows have after their last whole step, padded with zeros.
template <int R, int G, int64_t PARTS>
void tiles_times(
    const PackedRows<Tiles<PARTS>>& x, int64_t row, const BFloat16* weight, int64_t stride,
    const BFloat16* left, bool fetch, float* sums) {
  constexpr int64_t STEP = TILE_STEP;
  const int64_t whole = x.K / STEP;
  each<R * G>([](auto i) { clear_tile<i()>(); });
  for (int64_t step = 0; step < x.steps; ++step) {
    const int64_t next = step + TILES_AHEAD<PARTS>, passed = next < x.steps ? 0 : R * SIDE;
    const BFloat16* later = weight + passed * stride + (passed ? next - x.steps : next) * STEP;
    const auto load_rows = [&](int64_t part) {
      each<G>([&](auto g) {
        load_tile<RIGHT_TILE + g()>(
            x.tile(row + g() * SIDE, step, part), x.line * sizeof(BFloat16));
      });
    };
    const auto multiply = [&](auto r) {
      each<G>([&](auto g) { multiply_tiles<r() * G + g(), LEFT_TILE + r(), RIGHT_TILE + g()>(); });
    };
    load_rows(0);
    each<R>([&](auto r) {
      constexpr int W = LEFT_TILE + r();
      if (fetch)
        for (int64_t i = 0; i < SIDE; ++i)
          __builtin_prefetch(later + (r() * SIDE + i) * stride, 0, EVERY_CACHE);
      if (step < whole)
        load_tile<W>(weight + r() * SIDE * stride + step * STEP, stride * sizeof(BFloat16));
      else
        load_tile<W>(left + r() * TILE_SIZE, 2 * STEP);
      multiply(r);
    });
    for (int64_t part = 1; part < PARTS; ++part) {
      load_rows(part);
      each<R>(multiply);
    }
  }
  each<R * G>([&](auto i) { store_tile<i()>(sums + i() * SIDE * SIDE, 4 * SIDE); });
}

// Up to R times 16 weight rows times the rows of x from first_row on, as product() in linear.h.
template <int R, int64_t PARTS, typename Emit>
void weight_tiles_times(
    const PackedRows<Tiles<PARTS>>& x, int64_t first_row, const BFloat16* weight, int64_t stride,
    int64_t n, int64_t count, const Emit& emit) {
  constexpr int64_t STEP = TILE_STEP;
  alignas(64) float sums[R * 2 * SIDE * SIDE];
  alignas(64) BFloat16 left[R * TILE_SIZE];
  const int64_t whole = x.K / STEP, rest = x.K - whole * STEP;
  const BFloat16* from = weight + n * stride;
  if (rest > 0)
    for (int64_t r = 0; r < count; ++r) {
      std::fill_n(left + r * STEP, STEP, BFloat16{});
      std::copy_n(from + r * stride + whole * STEP, rest, left + r * STEP);
    }
  const int64_t begin = first_row / SIDE * SIDE;
  for (int64_t row = begin; row < x.rows; row += 2 * SIDE) {
    const auto run = [&](auto G) {
      tiles_times<R, G()>(x, row, from, stride, left, row == begin, sums);
      for (int64_t i = 0; i < R * G(); ++i) {
        float* tile = sums + i * SIDE * SIDE;
        transpose(tile, SIDE, SIDE, tile);
        const int64_t r = i / G() * SIDE, first = row + i % G() * SIDE;
        for (int64_t m = std::max(first_row, first); m < std::min(x.rows, first + SIDE); ++m)
          emit(m, n + r, tile + (m - first) * SIDE, std::min(SIDE, count - r));
      }
    };
    if (x.rows - row > SIDE)
      run(std::integral_constant<int, 2>{});
    else
      run(std::integral_constant<int, 1>{});
  }
}

// Weight rows [begin, end) times the rows of a block from first_row on, as product() in linear.h.
template <int64_t PARTS, typename Emit>
void product(
    Tiles<PARTS>, const PackedRows<Tiles<PARTS>>& x, int64_t first_row, const BFloat16* weight,
    int64_t stride, int64_t begin, int64_t end, const Emit& emit) {
  shape_tiles(SIDE);
  int64_t n = begin;
  // Where memory is waited for, one stream of 16 weight rows is the fastest. But a sum waits longer for
  // the parts than memory is waited for.
  if (x.rows > 2 * SIDE || PARTS > 1)
    for (; n + 2 * SIDE <= end; n += 2 * SIDE)
      weight_tiles_times<2>(x, first_row, weight, stride, n, 2 * SIDE, emit);
  for (; n < end; n += SIDE) {
    const int64_t count = std::min(SIDE, end - n);
    if (count < SIDE) shape_tiles(count);
    weight_tiles_times<1>(x, first_row, weight, stride, n, count, emit);
  }
  release_tiles();
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
