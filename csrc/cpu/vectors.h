// Vectors of ARGS_FAST_WIDTH floats: what every kernel is written in.

namespace args_fast::ARGS_FAST_ISA {
namespace {

constexpr int64_t WIDTH = ARGS_FAST_WIDTH;  // floats in a vector: 4, 8 or 16
constexpr float INFINITE = std::numeric_limits<float>::infinity();

typedef float Vector __attribute__((vector_size(4 * ARGS_FAST_WIDTH)));
typedef int32_t Integers __attribute__((vector_size(4 * ARGS_FAST_WIDTH)));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline Vector splat(float x) { return x - Vector{}; }

// a * b + c in one rounding where the processor has it. Where bits must not depend on how a loop was
// unrolled, this is written out: the compiler may fuse one copy of a product and not another.
inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if ARGS_FAST_WIDTH == 16
  return Vector(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif ARGS_FAST_WIDTH == 8
  return Vector(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#elif defined(__aarch64__)
  return Vector(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
  return a * b + c;
#endif
}

// Whether a comparison holds in some place.
inline bool any(Integers holds) {
#if ARGS_FAST_WIDTH == 16
  return _mm512_test_epi32_mask(__m512i(holds), __m512i(holds)) != 0;
#elif ARGS_FAST_WIDTH == 8
  return !_mm256_testz_si256(__m256i(holds), __m256i(holds));
#else
  int32_t found = 0;
  for (int64_t i = 0; i < WIDTH; ++i) found |= holds[i];
  return found != 0;
#endif
}

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

// a and b mixed: the floats at PLACES of a, or from WIDTH on of b.
template <int... PLACES>
inline Vector mixed(Vector a, Vector b, std::integer_sequence<int, PLACES...>) {
  return ARGS_FAST_SHUFFLE(a, b, PLACES...);
}
#undef ARGS_FAST_SHUFFLE
typedef std::make_integer_sequence<int, WIDTH> EachPlace;

// Floats A, B, C and D of each four of a and b, where 4 to 7 are those of b.
template <int A, int B, int C, int D, int... I>
constexpr auto places_in_fours(std::integer_sequence<int, I...>) {
  constexpr int of[] = {A, B, C, D};
  return std::integer_sequence<int, (I / 4 * 4 + of[I % 4] % 4 + of[I % 4] / 4 * int(WIDTH))...>{};
}
template <int A, int B, int C, int D>
inline Vector in_fours(Vector a, Vector b) {
  return mixed(a, b, places_in_fours<A, B, C, D>(EachPlace{}));
}

// Four vectors in one: each of its fours has the sums of theirs.
inline Vector folded(Vector a, Vector b, Vector c, Vector d) {
  const Vector ab = in_fours<0, 4, 1, 5>(a, b) + in_fours<2, 6, 3, 7>(a, b);
  const Vector cd = in_fours<0, 4, 1, 5>(c, d) + in_fours<2, 6, 3, 7>(c, d);
  return in_fours<0, 1, 4, 5>(ab, cd) + in_fours<2, 3, 6, 7>(ab, cd);
}

// Every second four of a and b, from the first on or from the second.
template <int FIRST, int... I>
constexpr auto second_fours(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, ((2 * (I / 4) + FIRST) * 4 + I % 4)...>{};
}

// The sums of WIDTH vectors, of which every four are folded into the first of them.
inline Vector sums_of_folded(const Vector* vectors) {
  Vector part[WIDTH / 4];
  for (int64_t i = 0; i < WIDTH / 4; ++i) part[i] = vectors[4 * i];
  for (int64_t half = WIDTH / 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i)
      part[i] = mixed(part[2 * i], part[2 * i + 1], second_fours<0>(EachPlace{})) +
                mixed(part[2 * i], part[2 * i + 1], second_fours<1>(EachPlace{}));
  return part[0];
}

// Rows [WIDTH, D], `stride` apart, padded to whole vectors, as columns [D, WIDTH]: those of a square are
// interleaved log2(WIDTH) times.
inline void transpose(const float* from, int64_t stride, int64_t D, float* turned) {
  for (int64_t d = 0; d < D; d += WIDTH) {
    Vector rows[WIDTH], mixed[WIDTH];
    for (int64_t i = 0; i < WIDTH; ++i) rows[i] = load(from + i * stride + d);
    for (int64_t done = 1; done < WIDTH; done *= 2) {
      for (int64_t i = 0; i < WIDTH / 2; ++i) {
        mixed[2 * i] = lower(rows[i], rows[i + WIDTH / 2]);
        mixed[2 * i + 1] = upper(rows[i], rows[i + WIDTH / 2]);
      }
      for (int64_t i = 0; i < WIDTH; ++i) rows[i] = mixed[i];
    }
    for (int64_t i = 0; i < std::min(WIDTH, D - d); ++i) store(turned + (d + i) * WIDTH, rows[i]);
  }
}

// The larger one in each place; that of b where one of them is a NaN.
inline Vector larger(Vector a, Vector b) {
#if ARGS_FAST_WIDTH == 16
  return Vector(_mm512_maskz_max_ps(__mmask16(-1), __m512(a), __m512(b)));
#elif ARGS_FAST_WIDTH == 8
  return Vector(_mm256_max_ps(__m256(a), __m256(b)));
#else
  return a > b ? a : b;
#endif
}

// e^x for x <= 0 to about one unit in the last place: 2^n * e^r with |r| <= ln(2) / 2.
inline Vector exp_negative(Vector x) {
  const Vector low = splat(-87.3f);
  // 1.5 * 2^23, to which adding rounds to a whole number, and what the exponents of floats begin with.
  const Vector magic = splat(12582912.0f + 127.0f);
  const Vector rounded = larger(x, low) * 1.44269504088896341f + magic;
  const Vector n = rounded - magic;
  const Vector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vector p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Integers exponent;
  std::memcpy(&exponent, &rounded, sizeof exponent);
  exponent <<= 23;
  Vector power;
  std::memcpy(&power, &exponent, sizeof power);
  // Up to `low` the result is 0, which is also what a masked score (-inf) weighs. A NaN stays.
  return x <= low ? Vector{} : p * power;
}

inline float exp_negative(float x) { return exp_negative(splat(x))[0]; }

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
