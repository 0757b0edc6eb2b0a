// Tile registers (AMX) and what multiplies them: sums [16, 16] += left [16, 32] times right, of which a
// line has the same pair of elements of 16 columns, [16 pairs, 16 columns, 2]. A pair of lines and
// columns has sums that depend on nothing else.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// Lines of a tile, and elements of a line.
constexpr int64_t SIDE = 16, TILE_STEP = 32, TILE_SIZE = SIDE * TILE_STEP;

struct alignas(64) Tile {
  BFloat16 elements[TILE_SIZE];

  BFloat16* line(int64_t i) { return elements + i * TILE_STEP; }
  const BFloat16* line(int64_t i) const { return elements + i * TILE_STEP; }
};

// The lines of a tile, as pairs, become its columns.
inline void turn_pairs(BFloat16* tile) {
  float* const pairs = reinterpret_cast<float*>(tile);  // as they are of the same size
  transpose(pairs, SIDE, SIDE, pairs);
}

// What a part leaves of x; of an infinite one nothing.
inline Vector left_of(Vector x, Vector part) {
  const Vector left = x - part;
  return left == left ? left : Vector{};
}
// A step of floats as PARTS bfloat16, `apart` from each other: the nearest one, the one nearest to what
// that leaves, and so on. Three have all bits of a float. But what is above the largest bfloat16 (3.39e38)
// counts as infinite, and a part that is too small for a normal bfloat16 (1.2e-38) as 0 in products.
template <int64_t PARTS>
inline void split_floats(Vector first, Vector second, BFloat16* to, int64_t apart) {
  for (int64_t part = 0; part < PARTS; ++part, to += apart) {
    const __m512bh both = _mm512_cvtne2ps_pbh(__m512(second), __m512(first));
    std::memcpy(to, &both, sizeof both);
    first = left_of(first, widened(to));
    second = left_of(second, widened(to + WIDTH));
  }
}

// The registers by their numbers: four of sums from 0 on, two of the right side, two of the left one.
constexpr int RIGHT_TILE = 4, LEFT_TILE = 6;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, none[14] = {};
  uint16_t bytes[16] = {};  // of a line
  uint8_t lines[16] = {};
};

// All registers whole, or those of the left side and of sums with `lines` of their lines.
inline void shape_tiles(int64_t lines) {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.bytes[i] = 64;
    shapes.lines[i] = i == RIGHT_TILE || i == RIGHT_TILE + 1 ? SIDE : lines;
  }
  asm volatile("ldtilecfg %0" ::"m"(shapes));
}
inline void release_tiles() { asm volatile("tilerelease"); }

// `stride` is in bytes.
template <int N>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(N));
}
template <int N>
inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(N), "r"(from), "r"(stride) : "memory");
}
template <int N>
inline void load_tile(const Tile& tile) {
  load_tile<N>(tile.elements, TILE_STEP * sizeof(BFloat16));
}
template <int N>
inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(N), "r"(to), "r"(stride) : "memory");
}
template <int SUM, int LEFT, int RIGHT>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

// f(0), f(1), ... as constants.
template <typename F, int... I>
inline void each(std::integer_sequence<int, I...>, const F& f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int COUNT, typename F>
inline void each(const F& f) {
  each(std::make_integer_sequence<int, COUNT>{}, f);
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
