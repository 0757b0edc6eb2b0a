// What a decoder layer does to one row between its products: norms, activations, rotary positions.
//
// Each function is compiled once, so that a value has the same bits wherever it stands in a row, and a
// row wherever it stands in a batch: inlined twice, a product and a sum may be fused in one place only.
#define ARGS_FAST_ONCE __attribute__((noinline))

namespace args_fast::ARGS_FAST_ISA {
namespace {

inline Vector sigmoid(Vector x) {
  const Vector e = exp_negative(x > 0.0f ? -x : x), one = splat(1.0f);
  return (x > 0.0f ? one : e) / (one + e);
}

// erf(x) to a few units in the last place of 1: an odd polynomial over an even one, as in Eigen.
inline Vector erf_of(Vector x) {
  const Vector bound = splat(4.0f);
  const Vector y = x > bound ? bound : (x < -bound ? -bound : x), z = y * y;
  Vector p = splat(-2.72614225801306e-10f);
  p = p * z + 2.77068142495902e-08f;
  p = p * z - 2.10102402082508e-06f;
  p = p * z - 5.69250639462346e-05f;
  p = p * z - 7.34990630326855e-04f;
  p = p * z - 2.95459980854025e-03f;
  p = p * z - 1.60960333262415e-02f;
  Vector q = splat(-1.45660718464996e-05f);
  q = q * z - 2.13374055278905e-04f;
  q = q * z - 1.68282697438203e-03f;
  q = q * z - 7.37332916720468e-03f;
  q = q * z - 1.42647390514189e-02f;
  return x != x ? x : y * p / q;
}

ARGS_FAST_ONCE Vector silu(Vector x) { return x * sigmoid(x); }
ARGS_FAST_ONCE Vector relu(Vector x) { return x <= 0.0f ? Vector{} : x; }  // a NaN stays
ARGS_FAST_ONCE Vector gelu(Vector x) {
  return 0.5f * x * (1.0f + erf_of(x * 0.70710678118654752f));
}
ARGS_FAST_ONCE Vector gelu_tanh(Vector x) {  // 0.5 * (1 + tanh(u)) is the sigmoid of 2u
  return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
}

// x = act(x), times `factor` where there is one.
inline void activate(Activation activation, float* x, const float* factor, int64_t count) {
  for (int64_t i = 0; i < count; i += WIDTH) {
    Vector v = load_part(x + i, count - i);
    switch (activation) {
      case Activation::silu: v = silu(v); break;
      case Activation::relu: v = relu(v); break;
      case Activation::gelu: v = gelu(v); break;
      case Activation::gelu_tanh: v = gelu_tanh(v); break;
    }
    if (factor != nullptr) v *= load_part(factor + i, count - i);
    store_part(x + i, v, count - i);
  }
}

// to = (x - mean) / deviation * weight + bias, with the mean (0 for RMSNorm) and the deviation of the
// row. weight and bias are padded to whole vectors, or null; `to` may be x.
ARGS_FAST_ONCE void normalize(
    const float* x, int64_t H, bool rms, float eps, const float* weight, const float* bias,
    float* to) {
  float mean = 0.0f;
  if (!rms) {
    Vector total{};
    for (int64_t i = 0; i < H; i += WIDTH) total += load_part(x + i, H - i);
    mean = sum(total) / float(H);
  }
  Vector squares{};
  for (int64_t i = 0; i < H; i += WIDTH) {
    Vector distance = load_part(x + i, H - i) - mean;
    if (H - i < WIDTH) {  // only what stands in the row
      Vector inside{};
      std::memcpy(&inside, &distance, (H - i) * sizeof(float));
      distance = inside;
    }
    squares = multiply_add(distance, distance, squares);
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / float(H) + eps);
  for (int64_t i = 0; i < H; i += WIDTH) {
    Vector v = (load_part(x + i, H - i) - mean) * scale;
    if (weight != nullptr) v = v * load(weight + i);
    if (bias != nullptr) v = v + load(bias + i);
    store_part(to + i, v, H - i);
  }
}

// Turn the pairs (x[i], x[i + half]) by the angles of a position, whose cosines and sines [2 * half]
// stand in cos and sin.
ARGS_FAST_ONCE void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += WIDTH) {
    const int64_t count = half - i;
    const Vector a = load_part(x + i, count), b = load_part(x + half + i, count);
    const Vector turned_a = a * load_part(cos + i, count) - b * load_part(sin + i, count);
    const Vector turned_b =
        b * load_part(cos + half + i, count) + a * load_part(sin + half + i, count);
    store_part(x + i, turned_a, count);
    store_part(x + half + i, turned_b, count);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
