// Rows of x as the products of linear.h read them, and what they are multiplied with.

namespace args_fast::ARGS_FAST_ISA {
namespace {

constexpr int64_t BLOCK_ROWS = 64;  // rows of x that share one reading of the weights
constexpr int64_t TILE_ROWS = 6;    // rows of x in a tile, at most

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
#endif
#ifdef ARGS_FAST_AMX
// Weights and rows of x, 16 of each at a time (linear_tiles.h). x is given in PARTS of bfloat16, whose
// sum it is.
template <int64_t PARTS>
struct Tiles {
  typedef BFloat16 Weight;
  typedef BFloat16 Input;
  static constexpr int64_t STEP = TILE_STEP;
};
#endif
#if defined(ARGS_FAST_AMX)
typedef Tiles<1> OfBFloat16;
typedef Tiles<3> OfFloatsAndBFloat16;
#elif defined(ARGS_FAST_BF16)
typedef Pairs OfBFloat16;
typedef Widened<BFloat16> OfFloatsAndBFloat16;
#else
typedef Widened<BFloat16> OfBFloat16;
typedef Widened<BFloat16> OfFloatsAndBFloat16;
#endif

// The product of rows of type T with weights that are stored in this way.
template <typename T, Storage STORAGE>
struct ProductOf {
  typedef Widened<T> Product;
};
template <>
struct ProductOf<BFloat16, Storage::rows> {
  typedef OfBFloat16 Product;
};
template <typename T>
struct ProductOf<T, Storage::int8> {
  typedef Widened<int8_t> Product;
};
template <>
struct ProductOf<float, Storage::bfloat16> {
  typedef OfFloatsAndBFloat16 Product;
};
template <>
struct ProductOf<float, Storage::float16> {
  typedef Widened<Half> Product;
};

// The first `filled` elements of a step of x as it is multiplied, then zeros.
template <typename P, typename T>
void pack_step(const T* from, int64_t filled, float* to) {
  widen(from, filled, to);
}
#ifdef ARGS_FAST_BF16
template <typename P>
void pack_step(const BFloat16* from, int64_t filled, BFloat16* to) {
  std::memcpy(to, from, filled * sizeof(BFloat16));
  std::memset(to + filled, 0, (P::STEP - filled) * sizeof(BFloat16));
}
template <typename P>
void pack_step(const float* from, int64_t filled, BFloat16* to) {
  float part[P::STEP] = {};
  if (filled < P::STEP) {
    std::memcpy(part, from, filled * sizeof(float));
    from = part;
  }
  // Rounds to nearest, ties to even; what is too small for it is taken for 0, as in the products.
  const __m512bh pairs = _mm512_cvtne2ps_pbh(__m512(load(from + WIDTH)), __m512(load(from)));
  std::memcpy(to, &pairs, sizeof pairs);
}
#endif

// Up to BLOCK_ROWS rows of x as the tiles read them: for each tile, for each step, a vector of each
// of its rows.
template <typename P>
class PackedRows {
 public:
  typedef typename P::Input Input;

  PackedRows(Input* memory, int64_t rows, int64_t K)
      : rows(rows), K(K), steps((K + P::STEP - 1) / P::STEP),
        tiles((rows + TILE_ROWS - 1) / TILE_ROWS), memory_(memory) {}

  // Elements in memory.
  static int64_t size(int64_t rows, int64_t K) {
    return rows * ((K + P::STEP - 1) / P::STEP * P::STEP);
  }

  int64_t first_row(int64_t tile) const { return rows * tile / tiles; }
  int64_t tile_rows(int64_t tile) const { return first_row(tile + 1) - first_row(tile); }
  int64_t tile_of(int64_t row) const {
    int64_t tile = row * tiles / rows;
    while (first_row(tile + 1) <= row) ++tile;
    return tile;
  }
  const Input* tile(int64_t tile) const { return memory_ + first_row(tile) * steps * P::STEP; }

  template <typename T>
  void pack(int64_t row, const T* from) {
    const int64_t tile = tile_of(row), count = tile_rows(tile);
    Input* to = memory_ + first_row(tile) * steps * P::STEP + (row - first_row(tile)) * P::STEP;
    for (int64_t step = 0; step < steps; ++step, to += count * P::STEP) {
      const int64_t filled = std::min(P::STEP, K - step * P::STEP);
      pack_step<P>(from + step * P::STEP, filled, to);
    }
  }

  const int64_t rows, K, steps, tiles;

 private:
  Input* const memory_;
};

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
