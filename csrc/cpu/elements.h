// Elements of the tensors as floats: float32, bfloat16 and float16.

namespace args_fast::ARGS_FAST_ISA {
namespace {

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

inline int64_t padded(int64_t D) { return (D + WIDTH - 1) / WIDTH * WIDTH; }

// WIDTH elements as floats.
inline Vector widened(const float* from) { return load(from); }
// As whole numbers, then.
inline Integers widened_bits(const BFloat16* from) {
#if ARGS_FAST_WIDTH == 16
  return Integers(_mm512_maskz_cvtepu16_epi32(
      __mmask16(-1), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
  typedef uint16_t Shorts __attribute__((vector_size(2 * ARGS_FAST_WIDTH)));
  Shorts bits;
  std::memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, Integers);
#endif
}
inline Vector widened(const BFloat16* from) {
  const Integers wide = widened_bits(from) << 16;
  Vector floats;
  std::memcpy(&floats, &wide, sizeof floats);
  return floats;
}
inline Vector widened(const Half* from) {
#if ARGS_FAST_WIDTH == 16
  return Vector(_mm512_maskz_cvtph_ps(
      __mmask16(-1), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif ARGS_FAST_WIDTH == 8
  return Vector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Vector floats;
  for (int64_t i = 0; i < WIDTH; ++i) floats[i] = to_float(from[i]);
  return floats;
#endif
}

inline Vector widened(const int8_t* from) {
#if ARGS_FAST_WIDTH == 16
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __mmask16 all = __mmask16(-1);
  return Vector(_mm512_maskz_cvtepi32_ps(all, _mm512_maskz_cvtepi8_epi32(all, bytes)));
#elif ARGS_FAST_WIDTH == 8
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return Vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#else
  typedef int8_t Bytes __attribute__((vector_size(ARGS_FAST_WIDTH)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Integers), Vector);
#endif
}

// The first `count` of WIDTH elements as floats; the others are 0.
template <typename T>
inline Vector load_part(const T* from, int64_t count) {
  if (count >= WIDTH) return widened(from);
  T part[WIDTH] = {};
  std::memcpy(part, from, count * sizeof(T));
  return widened(part);
}

// The first `count` of WIDTH floats as elements; what comes after them stays as it is.
template <typename T>
inline void store_part(T* to, Vector v, int64_t count) {
  float part[WIDTH];
  store(part, v);
  if (count >= WIDTH)
    for (int64_t i = 0; i < WIDTH; ++i) from_float(part[i], to[i]);
  else
    for (int64_t i = 0; i < count; ++i) from_float(part[i], to[i]);
}

// A row of D elements as floats, padded with zeros to whole vectors.
template <typename T>
inline void widen(const T* from, int64_t D, float* to) {
  int64_t d = 0;
  for (; d + WIDTH <= D; d += WIDTH) store(to + d, widened(from + d));
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

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
