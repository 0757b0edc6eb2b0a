// decoder_layers as torch sees it.
#include "held_tensors.h"
#include "ops.h"
#include "prefixes.h"

#include <map>
#include <string>

namespace args_fast {
namespace {

// The tensors of a layer, in the order in which they come (args_fast/ops/schemas.py).
enum Part {
  NORM1,
  NORM1_BIAS,
  Q,
  Q_BIAS,
  K,
  K_BIAS,
  V,
  V_BIAS,
  Q_NORM,
  K_NORM,
  O,
  O_BIAS,
  NORM2,
  NORM2_BIAS,
  GATE,
  GATE_BIAS,
  UP,
  UP_BIAS,
  DOWN,
  DOWN_BIAS,
  Q_SCALE,
  K_SCALE,
  V_SCALE,
  O_SCALE,
  GATE_SCALE,
  UP_SCALE,
  DOWN_SCALE,
  PARTS
};

constexpr int64_t MATRICES = PARTS - Q_SCALE;  // of a layer
constexpr int64_t TERM_PARTS = 3;              // tensors of what an adapter adds to a matrix

// Takes the tensors of all layers apart. A tensor without elements stands for one that is not there.
class Weights {
 public:
  // `type`: of all but the matrices, which are stored as those of the first layer are.
  Weights(const std::vector<Tensor>& tensors, ScalarType type)
      : tensors_(tensors), type_(type), matrix_type_(at(0, Q).scalar_type()) {}

  const Tensor& at(int64_t layer, Part part) const { return tensors_[layer * PARTS + part]; }

  Norm norm(const Tensor& weight, const Tensor& bias, int64_t size) const {
    return {vector(weight, size), vector(bias, size)};
  }

  // [rows, columns].
  Matrix matrix(
      const Tensor& weight, const Tensor& scale, const Tensor& bias, int64_t rows, int64_t columns,
      Storage storage) {
    if (weight.numel() == 0) return {};
    const bool by_columns = storage == Storage::columns, integers = storage == Storage::int8;
    check_shape(weight, {rows, columns}, "the weight of a layer");
    check_type(weight, matrix_type_, "the weight of a layer");
    const float* factors = nullptr;
    if (integers) {
      check_shape(scale, {rows}, "the scale of a weight");
      check_type(scale, ScalarType::Float, "the scale of a weight");
      check_rows(scale, "the scale of a weight");
      factors = static_cast<const float*>(scale.data_ptr());
    }
    STD_TORCH_CHECK(
        weight.stride(by_columns ? 0 : 1) == 1 || weight.size(by_columns ? 0 : 1) == 1,
        "args_fast: the weights of all layers must be contiguous along the same dimension");
    return {weight.data_ptr(),
            factors,
            vector(bias, rows),
            rows,
            weight.stride(by_columns ? 1 : 0),
            {}};
  }

  // a [rank, columns], b [rank, rows], bias [rows]: those of an adapter.
  LowRank low_rank(
      const Tensor& a, const Tensor& b, const Tensor& bias, int64_t rows, int64_t columns) const {
    LowRank term{};
    if (a.numel() > 0) {
      check_shape(a, {ANY, columns}, "an adapter's a");
      check_type(a, type_, "an adapter's a");
      check_rows(a, "an adapter's a");
      check_shape(b, {a.size(0), rows}, "an adapter's b");
      check_type(b, ScalarType::Float, "an adapter's b");
      STD_TORCH_CHECK(b.is_contiguous(), "args_fast: an adapter's b must be contiguous");
      term.a = a.data_ptr();
      term.b = static_cast<const float*>(b.data_ptr());
      term.rank = a.size(0);
      term.stride = a.stride(0);
    }
    if (bias.numel() > 0) {
      check_shape(bias, {rows}, "an adapter's bias");
      check_type(bias, ScalarType::Float, "an adapter's bias");
      check_rows(bias, "an adapter's bias");
      term.bias = static_cast<const float*>(bias.data_ptr());
    }
    return term;
  }

 private:
  const void* vector(const Tensor& tensor, int64_t size) const {
    if (tensor.numel() == 0) return nullptr;
    check_shape(tensor, {size}, "a norm or bias of a layer");
    check_type(tensor, type_, "a norm or bias of a layer");
    check_rows(tensor, "a norm or bias of a layer");
    return tensor.data_ptr();
  }

  const std::vector<Tensor>& tensors_;
  const ScalarType type_, matrix_type_;
};

Activation activation_of(const std::string& name) {
  static const std::map<std::string, Activation> names = {
      {"silu", Activation::silu},
      {"relu", Activation::relu},
      {"gelu", Activation::gelu},
      {"gelu_tanh", Activation::gelu_tanh},
  };
  const auto found = names.find(name);
  STD_TORCH_CHECK(
      found != names.end(), "args_fast: activation is ", name,
      ", which must be silu, relu, gelu or gelu_tanh");
  return found->second;
}

DecoderLayer layer_of(
    Weights& weights, int64_t l, const DecoderLayers& a, double scale, int64_t window,
    const Tensor* terms) {
  const auto at = [&](Part part) -> const Tensor& { return weights.at(l, part); };
  const Attention& of_both = a.readers[0].attention;
  const int64_t D = of_both.D, Hq = of_both.Hq, Hkv = of_both.Hkv;
  const auto matrix = [&](Part weight, Part scale, int64_t rows, int64_t columns) {
    const Tensor& bias = at(static_cast<Part>(weight + 1));
    Matrix matrix = weights.matrix(at(weight), at(scale), bias, rows, columns, a.storage);
    const Tensor* term = terms + TERM_PARTS * (scale - Q_SCALE);
    if (terms != nullptr && matrix.weight != nullptr)
      matrix.added = weights.low_rank(term[0], term[1], term[2], rows, columns);
    return matrix;
  };
  DecoderLayer layer{};
  layer.norm1 = weights.norm(at(NORM1), at(NORM1_BIAS), a.H);
  layer.norm2 = weights.norm(at(NORM2), at(NORM2_BIAS), a.H);
  layer.q_norm = weights.norm(at(Q_NORM), Tensor(), D);
  layer.k_norm = weights.norm(at(K_NORM), Tensor(), D);
  layer.q = matrix(Q, Q_SCALE, Hq * D, a.H);
  layer.k = matrix(K, K_SCALE, Hkv * D, a.H);
  layer.v = matrix(V, V_SCALE, Hkv * D, a.H);
  layer.o = matrix(O, O_SCALE, a.H, Hq * D);
  layer.gate = matrix(GATE, GATE_SCALE, a.F, a.H);
  layer.up = matrix(UP, UP_SCALE, a.F, a.H);
  layer.down = matrix(DOWN, DOWN_SCALE, a.H, a.F);
  for (const Matrix* needed : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.up, &layer.down})
    STD_TORCH_CHECK(
        needed->weight != nullptr, "args_fast: only gates, norms and biases can be left out");
  layer.scale = static_cast<float>(scale);
  layer.window = window;
  STD_TORCH_CHECK(window >= 0, "args_fast: a sliding window is ", window, "; 0 means none");
  return layer;
}

}  // namespace

void decoder_layers(
    const Tensor& hidden, int64_t number, const Tensor& tail_k, const Tensor& tail_v,
    const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
    const Tensor& prefix_lengths, std::optional<Tensor> tail_mask, std::optional<Tensor> cos,
    std::optional<Tensor> sin, const std::vector<double>& scales,
    const std::vector<int64_t>& windows, Name norm, double eps, Name activation, bool pre_norm,
    std::optional<Tensor> final_norm, std::optional<Tensor> final_norm_bias,
    const std::vector<Tensor>& adapted) {
  const std::shared_ptr<const HeldTensors> held = held_tensors(number);
  const auto& [tensors, low_rank] = *held;
  const int64_t L = scales.size();
  STD_TORCH_CHECK(
      L > 0 && windows.size() == scales.size() && int64_t(tensors.size()) == L * PARTS,
      "args_fast: each layer has a scale, a window and ", int64_t(PARTS), " tensors");
  STD_TORCH_CHECK(
      low_rank.empty() || int64_t(low_rank.size()) == L * MATRICES * TERM_PARTS,
      "args_fast: an adapter has no tensors, or ", MATRICES * TERM_PARTS, " for each layer");
  STD_TORCH_CHECK(
      adapted.empty() || adapted.size() == 4,
      "args_fast: adapted rows have no tensors, or tail_k, tail_v, k_pages and v_pages");
  DecoderLayers a{};
  const auto read = [&](const Tensor& tail_k, const Tensor& tail_v, const Tensor& k_pages,
                        const Tensor& v_pages) {
    Reader& reader = a.readers[a.reader_count++];
    reader.attention =
        over_prefixes(tail_k, tail_v, k_pages, v_pages, page_table, prefix_lengths, tail_mask, {L});
    reader.layer_stride = {
        tail_k.stride(0), tail_v.stride(0), k_pages.stride(0), v_pages.stride(0)};
  };
  read(tail_k, tail_v, k_pages, v_pages);
  Attention& attention = a.readers[0].attention;
  const int64_t B = attention.B, N = attention.N, D = attention.D, Hkv = attention.Hkv;
  if (!adapted.empty()) {
    check_shape(adapted[0], {L, B, N, Hkv, D}, "the tail of the adapted rows");
    check_type(adapted[0], tail_k.scalar_type(), "the tail of the adapted rows");
    read(adapted[0], adapted[1], adapted[2], adapted[3]);
  }
  check_shape(hidden, {a.reader_count * B, N, ANY}, "hidden");
  check_type(hidden, ScalarType::Float, "hidden");
  STD_TORCH_CHECK(hidden.is_contiguous(), "args_fast: hidden must be contiguous");
  a.hidden = static_cast<float*>(hidden.data_ptr());
  a.L = L;
  a.H = hidden.size(2);
  Weights weights(tensors, tail_k.scalar_type());
  const Tensor &q = weights.at(0, Q), &up = weights.at(0, UP);
  check_shape(q, {ANY, a.H}, "the weight of a layer");
  check_shape(up, {ANY, a.H}, "the weight of a layer");
  STD_TORCH_CHECK(
      D > 0 && Hkv > 0 && q.size(0) % (D * Hkv) == 0,
      "args_fast: query heads must be a multiple of kv heads");
  for (Reader& reader : a.readers) reader.attention.Hq = q.size(0) / D;
  a.F = up.size(0);
  a.storage = storage_of(q, tail_k.scalar_type(), "the weight of a layer");
  STD_TORCH_CHECK(
      norm.text == "rms" || norm.text == "layer", "args_fast: norm is ", norm.text,
      ", which must be rms or layer");
  a.rms = norm.text == "rms";
  a.eps = static_cast<float>(eps);
  a.activation = activation_of(activation.text);
  a.pre_norm = pre_norm;
  STD_TORCH_CHECK(
      cos.has_value() == sin.has_value(), "args_fast: cos and sin come together or not at all");
  if (cos.has_value()) {
    a.rotary = cos->size(cos->dim() - 1);
    STD_TORCH_CHECK(
        a.rotary % 2 == 0 && a.rotary <= D, "args_fast: cos has ", a.rotary,
        " columns; an even number of up to ", D, " is allowed");
    for (const Tensor* tensor : {&*cos, &*sin}) {
      check_shape(*tensor, {B, N, a.rotary}, "cos or sin");
      check_type(*tensor, ScalarType::Float, "cos or sin");
      STD_TORCH_CHECK(tensor->is_contiguous(), "args_fast: cos and sin must be contiguous");
    }
    a.cos = static_cast<const float*>(cos->data_ptr());
    a.sin = static_cast<const float*>(sin->data_ptr());
  }
  std::vector<DecoderLayer> layers;
  for (int64_t l = 0; l < L; ++l) {
    const Tensor* terms = low_rank.empty() ? nullptr : low_rank.data() + l * MATRICES * TERM_PARTS;
    layers.push_back(layer_of(weights, l, a, scales[l], windows[l], terms));
  }
  a.layers = layers.data();
  a.has_final_norm = final_norm.has_value();
  if (a.has_final_norm)
    a.final_norm = weights.norm(*final_norm, final_norm_bias.value_or(Tensor()), a.H);
  if (B * N > 0) kernels().decoder_layers(a);
}

}  // namespace args_fast
