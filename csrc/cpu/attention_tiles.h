// The products of attention_split.h for bfloat16 in tiles (AMX). Queries and weights are floats; each is
// given as a bfloat16 and what that leaves of it, another one, so that no more is lost than with floats
// but for the last bits. Keys are left sides as they stand, values right ones of which neighboring
// tokens are mixed. Where tokens, rows or elements end within a tile the rest of it is zeros, or its sums
// are not read.

namespace args_fast::ARGS_FAST_ISA {
namespace {

template <>
class SplitProducts<BFloat16> {
  static constexpr int64_t STEP = TILE_STEP;
  static constexpr int64_t LONGEST_STEPS = (LONGEST_SPLIT + STEP - 1) / STEP;

 public:
  SplitProducts(const Attention& a, int64_t P)
      : D_(a.D), P_(P), W_(padded(a.D)), steps_((a.D + STEP - 1) / STEP), columns_(W_ / SIDE),
        queries_(a.Hkv * P / SIDE * steps_ * 2), keys_(LONGEST_SPLIT / SIDE * steps_),
        values_(LONGEST_STEPS * columns_), weights_(P / SIDE * LONGEST_STEPS * 2), zeros_(W_) {}

  void begin() { shape_tiles(SIDE); }
  void end() { release_tiles(); }

  void take_queries(const float* q, int64_t h, int64_t first) {
    Tile* tiles = queries_.data() + (h * P_ + first) / SIDE * steps_ * 2;
    for (int64_t step = 0; step < steps_; ++step, tiles += 2) {
      const int64_t d = step * STEP;
      for (int64_t i = 0; i < SIDE; ++i) {
        const float* from = q + i * W_ + d;
        split_floats<2>(
            load(from), d + WIDTH < W_ ? load(from + WIDTH) : Vector{}, tiles[0].line(i),
            TILE_SIZE);
      }
      for (int64_t part = 0; part < 2; ++part) turn_pairs(tiles[part].elements);
    }
  }

  void score(
      int64_t h, const BFloat16* const* keys, const BFloat16* const* values, int64_t count,
      float* scores) {
    take_keys(keys, values, count);
    const int64_t blocks = (count + SIDE - 1) / SIDE, groups = P_ / SIDE, steps = steps_;
    const Tile* queries = queries_.data() + h * groups * steps * 2;
    for (int64_t block = 0; block < blocks; block += 2)
      for (int64_t group = 0; group < groups; group += 2)
        for_rows<2>(blocks - block, [&](auto B) {
          for_rows<2>(groups - group, [&](auto G) {
            score_tiles<B(), G()>(
                keys_.data() + block * steps, queries + group * steps * 2, steps,
                scores + (block * P_ + group) * SIDE, P_);
          });
        });
  }

  void weigh(
      float* weights, const BFloat16* const* values, int64_t count, const float* kept, int64_t R,
      float* sums, const BFloat16* const* next, int64_t next_count) {
    const int64_t steps = (count + STEP - 1) / STEP, P = P_, W = W_, columns = columns_;
    take_values(values, count, next, next_count);
    std::fill(weights + count * P, weights + steps * STEP * P, 0.0f);
    for (int64_t first = 0; first < R; first += SIDE)
      for (int64_t step = 0; step < steps; ++step)
        take_weights(
            weights + step * STEP * P + first, P, std::min(SIDE, R - first),
            weights_.data() + (first / SIDE * steps + step) * 2);
    keep(kept, R, sums);
    for (int64_t first = 0; first < R; first += SIDE) {
      const Tile* group = weights_.data() + first / SIDE * steps * 2;
      for (int64_t column = 0; column < columns; column += 4)
        for_rows<4>(columns - column, [&](auto C) {
          weigh_tiles<C()>(
              group, values_.data() + column, columns, steps, sums + first * W + column * SIDE, W);
        });
    }
  }

 private:
  // Keys as left sides. Their values are fetched meanwhile.
  void take_keys(const BFloat16* const* keys, const BFloat16* const* values, int64_t count) {
    const int64_t D = D_, steps = steps_;
    for (int64_t j = 0; j < count; ++j) {
      prefetch(values[j], D * sizeof(BFloat16));
      BFloat16* line = keys_[j / SIDE * steps].line(j % SIDE);
      int64_t d = 0;
      for (; d + STEP <= D; d += STEP, line += TILE_SIZE)
        std::memcpy(line, keys[j] + d, STEP * sizeof(BFloat16));
      if (d < D) std::memcpy(line, keys[j] + d, (D - d) * sizeof(BFloat16));
    }
  }

  // Values as right sides, in which two tokens are mixed. The next keys are fetched meanwhile.
  void take_values(
      const BFloat16* const* values, int64_t count, const BFloat16* const* next,
      int64_t next_count) {
    const int64_t D = D_, columns = columns_, end = (count + STEP - 1) / STEP * STEP;
    for (int64_t j = 0, fetched = 0; j < end; j += 2) {
      BFloat16* line = values_[j / STEP * columns].line(j % STEP / 2);
      const BFloat16* even = j < count ? values[j] : zeros_.data();
      const BFloat16* odd = j + 1 < count ? values[j + 1] : zeros_.data();
      const auto mix = [&](const BFloat16* even, const BFloat16* odd) {
        const Integers pairs = widened_bits(even) | widened_bits(odd) << 16;
        std::memcpy(line, &pairs, sizeof pairs);
        line += TILE_SIZE;
      };
      int64_t d = 0;
      for (; d + WIDTH <= D; d += WIDTH) mix(even + d, odd + d);
      if (d < D) {
        BFloat16 parts[2][WIDTH] = {};
        std::copy_n(even + d, D - d, parts[0]);
        std::copy_n(odd + d, D - d, parts[1]);
        mix(parts[0], parts[1]);
      }
      for (; fetched * count < next_count * std::min(j + 2, count); ++fetched)
        prefetch(next[fetched], D * sizeof(BFloat16));
    }
  }

  // Weights of STEP tokens and up to SIDE rows, [STEP, P], as left sides: bfloat16 and what these leave.
  static void take_weights(const float* from, int64_t P, int64_t rows, Tile* tiles) {
    alignas(64) float turned[2][SIDE * SIDE];
    for (int64_t half = 0; half < 2; ++half)
      transpose(from + half * SIDE * P, P, SIDE, turned[half]);
    for (int64_t i = 0; i < rows; ++i)
      split_floats<2>(
          load(turned[0] + i * SIDE), load(turned[1] + i * SIDE), tiles[0].line(i), TILE_SIZE);
  }

  // Leave what is kept [rows] of sums [rows, W].
  void keep(const float* kept, int64_t rows, float* sums) const {
    const int64_t W = W_;
    for (int64_t i = 0; i < rows; ++i) {
      if (kept[i] == 1.0f) continue;
      for (int64_t d = 0; d < W; d += WIDTH) {
        float* place = sums + i * W + d;
        store(place, what_is_kept(kept[i], place));
      }
    }
  }

  // scores [B, SIDE keys, G, SIDE queries], rows P apart, of B times SIDE keys with G times SIDE queries.
  template <int B, int G>
  static void score_tiles(
      const Tile* keys, const Tile* queries, int64_t steps, float* scores, int64_t P) {
    each<B * G>([](auto i) { clear_tile<i()>(); });
    for (int64_t step = 0; step < steps; ++step) {
      each<B>([&](auto b) { load_tile<LEFT_TILE + b()>(keys[b() * steps + step]); });
      each<2>([&](auto part) {
        each<G>([&](auto g) {
          load_tile<RIGHT_TILE + g()>(queries[(g() * steps + step) * 2 + part()]);
        });
        each<B * G>(
            [&](auto i) { multiply_tiles<i(), LEFT_TILE + i() / G, RIGHT_TILE + i() % G>(); });
      });
    }
    each<B * G>([&](auto i) {
      store_tile<i()>(scores + (i() / G * P + i() % G) * SIDE, P * sizeof(float));
    });
  }

  // Add the values, weighed, to C times SIDE columns of sums [rows, W].
  template <int C>
  static void weigh_tiles(
      const Tile* weights, const Tile* values, int64_t columns, int64_t steps, float* sums,
      int64_t W) {
    each<C>([&](auto c) { load_tile<c()>(sums + c() * SIDE, W * sizeof(float)); });
    for (int64_t step = 0; step < steps; ++step, weights += 2, values += columns) {
      each<2>([&](auto part) { load_tile<LEFT_TILE + part()>(weights[part()]); });
      // A sum waits for its last product longer than three others take.
      each<2>([&](auto part) {
        each<C>([&](auto c) {
          constexpr int VALUES = RIGHT_TILE + c() % 2;
          load_tile<VALUES>(values[c()]);
          multiply_tiles<c(), LEFT_TILE + part(), VALUES>();
        });
      });
    }
    each<C>([&](auto c) { store_tile<c()>(sums + c() * SIDE, W * sizeof(float)); });
  }

  const int64_t D_, P_, W_, steps_, columns_;  // steps_: along D
  // By kv head, SIDE rows, step and part; by SIDE tokens and step; by step of tokens and columns; by
  // SIDE rows, step of tokens and part.
  std::vector<Tile> queries_, keys_, values_, weights_;
  std::vector<BFloat16> zeros_;  // a row
};

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
