// decoder_layers: all layers of a decoder over the rows of a tail, in one go.
//
//   pre-norm   x += o(attention(norm1(x)));  x += down(act(gate(norm2(x))) * up(norm2(x)))
//   post-norm  x = norm1(x + o(attention(x)));  x = norm2(x + down(act(up(x))))
//
// A layer is a few phases (team.h), in each of which the threads share the rows of the weights, or the
// units of the attention. Whatever is small is computed by every thread for itself: the norm before a
// product with the packing of its rows. Values between the products are float32; keys and values are
// stored in the tail in their own type before the attention reads them. The terms of an adapter take a
// phase more for each product: first the sums of x · aᵀ of all rows, then their products with b.
// Every part gives a row the same bits whatever rows are with it.
// Floor: the bytes of the weights, once for each 64 rows, and those of the prefixes' keys and values.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// The product with weight rows of type T.
template <typename T>
struct RowsOf {
  typedef Widened<T> Product;
};
template <>
struct RowsOf<BFloat16> {
  typedef OfBFloat16 Product;
};

template <typename T, Storage STORAGE>
class LayersOf {
  static constexpr bool COLUMNS = STORAGE == Storage::columns, INTEGERS = STORAGE == Storage::int8;
  typedef std::conditional_t<INTEGERS, int8_t, T> Weight;
  typedef typename RowsOf<T>::Product R;  // of the terms of an adapter
  typedef std::conditional_t<STORAGE == Storage::rows, R, Widened<Weight>> P;

 public:
  LayersOf(const DecoderLayers& a, int64_t threads)
      : a_(a), threads_(threads), M_(a.attention.B * a.attention.N), H_(a.H), F_(a.F),
        query_(a.attention.Hq * a.attention.D), key_(a.attention.Hkv * a.attention.D),
        ranks_(most_ranks(a)), plan_(a.attention),
        memory_(new float[M_ * (2 * query_ + 2 * key_ + 2 * F_ + ranks_)]) {
    q_ = memory_.get();
    mixed_ = q_ + M_ * query_;
    k_ = mixed_ + M_ * query_;
    v_ = k_ + M_ * key_;
    inner_ = v_ + M_ * key_;
    factor_ = inner_ + M_ * F_;
    low_ = factor_ + M_ * F_;
  }

  void run(Team::Member& team) const {
    Own own(a_);
    for (int64_t l = 0; l < a_.L; ++l) {
      const DecoderLayer& layer = a_.layers[l];
      project(team, own, layer);
      attend(team, own, layer, l);
      add(team, own, layer.o, mixed_);
      if (!a_.pre_norm) normalize_rows(team, own, layer.norm1);
      feed_forward(team, own, layer);
      add(team, own, layer.down, inner_);
      if (!a_.pre_norm) normalize_rows(team, own, layer.norm2);
    }
    if (a_.has_final_norm) normalize_rows(team, own, a_.final_norm);
  }

 private:
  // What a thread has for itself.
  struct Own {
    explicit Own(const DecoderLayers& a)
        : buffers(a.attention), row(padded(a.H)), weight(padded(std::max(a.H, a.attention.D))),
          bias(weight.size()) {}

    Buffers buffers;
    std::vector<float> row, weight, bias;
  };

  // A norm whose weights the thread has as floats.
  class Normalizer {
   public:
    Normalizer(const DecoderLayers& a, Own& own, const Norm& norm, int64_t size)
        : a_(a), size_(size), weight_(floats(norm.weight, own.weight)),
          bias_(floats(norm.bias, own.bias)) {}

    void operator()(const float* from, float* to) const {
      normalize(from, size_, a_.rms, a_.eps, weight_, bias_, to);
    }

   private:
    const float* floats(const void* from, std::vector<float>& room) const {
      if (from == nullptr) return nullptr;
      widen(static_cast<const T*>(from), size_, room.data());
      return room.data();
    }

    const DecoderLayers& a_;
    const int64_t size_;
    const float *weight_, *bias_;
  };

  // Weight rows that a thread takes at a time: its part of them all, in one go. Every new beginning
  // waits for memory once, which the processor cannot foresee.
  int64_t share(int64_t N) const {
    constexpr int64_t LEAST = COLUMNS ? SINGLE_PANEL * WIDTH : 16;
    return threads_ == 1 ? N : std::max(LEAST, (N / threads_ + LEAST - 1) / LEAST * LEAST);
  }

  // Call use(x, begin, end) for shares of N weight rows, where x are the rows [M, K] that `row` gives.
  template <typename Q, typename Row, typename Use>
  void products(Team::Member& team, int64_t K, int64_t N, const Row& rows, const Use& use) const {
    const int64_t most = share(N);
    std::optional<Packed<Q>> x;
    team.own_phase((N + most - 1) / most, [&](int64_t unit) {
      if (!x) {
        x.emplace(M_, K);
        rows([&](int64_t m, const float* row) { x->pack(m, row); });
      }
      use(*x, unit * most, std::min(N, (unit + 1) * most));
    });
  }

  // The rows of hidden after a norm, for products().
  auto normed(Own& own, const Norm& norm) const {
    return [this, &own, &norm](const auto& pack) {
      if (!a_.pre_norm) {
        for (int64_t m = 0; m < M_; ++m) pack(m, a_.hidden + m * H_);
        return;
      }
      const Normalizer normalizer(a_, own, norm, H_);
      for (int64_t m = 0; m < M_; ++m) {
        normalizer(a_.hidden + m * H_, own.row.data());
        pack(m, own.row.data());
      }
    };
  }

  // The ranks of the terms that are added to the products of one phase, at most.
  static int64_t most_ranks(const DecoderLayers& a) {
    int64_t most = 0;
    for (int64_t l = 0; l < a.L; ++l) {
      const DecoderLayer& layer = a.layers[l];
      const int64_t of_x = layer.q.added.rank + layer.k.added.rank + layer.v.added.rank;
      const int64_t of_mlp = layer.gate.added.rank + layer.up.added.rank;
      most = std::max({most, of_x, of_mlp, layer.o.added.rank, layer.down.added.rank});
    }
    return most;
  }

  // x · aᵀ of the terms of these matrices, one after the other in each row of low_.
  template <typename Row>
  void reduce(
      Team::Member& team, int64_t K, const Row& rows,
      std::initializer_list<const Matrix*> matrices) const {
    int64_t ranks = 0;
    for (const Matrix* matrix : matrices) ranks += matrix->added.rank;
    if (ranks == 0) return;
    const auto use = [&](const Packed<R>& x, int64_t begin, int64_t end) {
      int64_t before = 0;
      for (const Matrix* matrix : matrices) {
        const LowRank& term = matrix->added;
        const int64_t first = std::max<int64_t>(begin - before, 0),
                      last = std::min(end - before, term.rank);
        float* to = low_ + before;
        const auto emit = [&](int64_t m, int64_t n, const float* sums, int64_t count) {
          std::copy_n(sums, count, to + m * ranks_ + n);
        };
        if (first < last) x.times(static_cast<const T*>(term.a), term.stride, first, last, emit);
        before += term.rank;
      }
    };
    products<R>(team, K, ranks, rows, use);
  }

  // Add a matrix's term, whose sums begin at column `before` of low_, to results [begin, end).
  void add_term(
      const Matrix& matrix, int64_t before, int64_t begin, int64_t end, float* to,
      int64_t width) const {
    const LowRank& term = matrix.added;
    for (int64_t m = 0; m < M_; ++m) {
      float* row = to + m * width;
      for (int64_t r = 0; r < term.rank; ++r) {
        const float sum = low_[m * ranks_ + before + r];
        const float* b = term.b + r * matrix.rows;
        for (int64_t n = begin; n < end; ++n) row[n] += sum * b[n];
      }
      if (term.bias != nullptr)
        for (int64_t n = begin; n < end; ++n) row[n] += term.bias[n];
    }
  }

  // put(place of (m, n), results from n on, count) for weight rows [begin, end) of a matrix, whose
  // results are [M, width]; then its term, whose sums begin at column `before` of low_.
  template <typename Put>
  void times(
      const Packed<P>& x, const Matrix& matrix, int64_t before, int64_t begin, int64_t end,
      float* to, int64_t width, const Put& put) const {
    const T* bias = static_cast<const T*>(matrix.bias);
    const auto emit = [&](int64_t m, int64_t n, const float* sums, int64_t count) {
      float* place = to + m * width + n;
      for (int64_t i = 0; i < count; i += WIDTH) {
        Vector v = load(sums + i);
        const Vector more = bias == nullptr ? Vector{} : load_part(bias + n + i, count - i);
        if constexpr (INTEGERS)
          v = multiply_add(v, load_part(matrix.scale + n + i, count - i), more);
        else
          v += more;
        put(place + i, v, count - i);
      }
    };
    const Weight* weight = static_cast<const Weight*>(matrix.weight);
    if constexpr (COLUMNS)
      x.times_columns(weight, matrix.stride, begin, end, emit);
    else
      x.times(weight, matrix.stride, begin, end, emit);
    add_term(matrix, before, begin, end, to, width);
  }

  static void set(float* place, Vector v, int64_t count) { store_part(place, v, count); }
  static void increase(float* place, Vector v, int64_t count) {
    store_part(place, load_part(place, count) + v, count);
  }

  // Queries, keys and values of all rows.
  void project(Team::Member& team, Own& own, const DecoderLayer& layer) const {
    const auto use = [&](const Packed<P>& x, int64_t begin, int64_t end) {
      const std::pair<const Matrix*, float*> parts[] = {
          {&layer.q, q_}, {&layer.k, k_}, {&layer.v, v_}};
      int64_t before = 0, ranks = 0;
      for (const auto& [matrix, to] : parts) {
        const int64_t rows = matrix->rows, first = std::max<int64_t>(begin - before, 0),
                      last = std::min(end - before, rows);
        if (first < last) times(x, *matrix, ranks, first, last, to, rows, set);
        before += rows;
        ranks += matrix->added.rank;
      }
    };
    const auto rows = normed(own, layer.norm1);
    reduce(team, H_, rows, {&layer.q, &layer.k, &layer.v});
    products<P>(team, H_, query_ + 2 * key_, rows, use);
  }

  void attend(Team::Member& team, Own& own, const DecoderLayer& layer, int64_t l) const {
    Attention at = a_.attention;
    const int64_t query_stride[] = {at.N * query_, query_, at.D};
    std::copy_n(query_stride, 3, at.q_stride);
    at.q = q_;
    at.out = mixed_;
    at.tail_k = static_cast<const T*>(at.tail_k) + l * a_.layer_stride.tail_k;
    at.tail_v = static_cast<const T*>(at.tail_v) + l * a_.layer_stride.tail_v;
    at.k_pages = static_cast<const T*>(at.k_pages) + l * a_.layer_stride.k_pages;
    at.v_pages = static_cast<const T*>(at.v_pages) + l * a_.layer_stride.v_pages;
    at.scale = layer.scale;
    at.window = layer.window;
    team.shares(M_, [&](int64_t m) { place_row(at, own, layer, m); });
    team.phase(plan_.splits(), [&](int64_t unit) {
      plan_.template attend<T, float>(at, unit, own.buffers);
    });
    team.shares(plan_.merges(), [&](int64_t unit) {
      plan_.template finish<T, float>(at, unit, own.buffers);
    });
  }

  // Norm and turn the heads of row m, and store its keys and values in the tail.
  void place_row(const Attention& at, Own& own, const DecoderLayer& layer, int64_t m) const {
    const int64_t D = at.D, b = m / at.N, n = m % at.N;
    const auto prepare = [&](float* heads, int64_t count, const Norm& norm) {
      const Normalizer normalizer(a_, own, norm, D);
      for (int64_t h = 0; h < count; ++h) {
        float* x = heads + h * D;
        if (norm.weight != nullptr) normalizer(x, x);
        if (a_.cos != nullptr)
          rotate(x, a_.cos + m * a_.rotary, a_.sin + m * a_.rotary, a_.rotary / 2);
      }
    };
    prepare(q_ + m * query_, at.Hq, layer.q_norm);
    prepare(k_ + m * key_, at.Hkv, layer.k_norm);
    T* k = static_cast<T*>(const_cast<void*>(at.tail_k)) + b * at.tail_k_stride[0] +
           n * at.tail_k_stride[1];
    T* v = static_cast<T*>(const_cast<void*>(at.tail_v)) + b * at.tail_v_stride[0] +
           n * at.tail_v_stride[1];
    for (int64_t h = 0; h < at.Hkv; ++h)
      for (int64_t d = 0; d < D; d += WIDTH) {
        const int64_t from = m * key_ + h * D + d, count = D - d;
        store_part(k + h * at.tail_k_stride[2] + d, load_part(k_ + from, count), count);
        store_part(v + h * at.tail_v_stride[2] + d, load_part(v_ + from, count), count);
      }
  }

  // hidden += matrix(x) for rows x that are as long as the matrix takes them.
  void add(Team::Member& team, Own& own, const Matrix& matrix, const float* x) const {
    const int64_t K = x == mixed_ ? query_ : F_;
    const auto rows = [&](const auto& pack) {
      for (int64_t m = 0; m < M_; ++m) pack(m, x + m * K);
    };
    reduce(team, K, rows, {&matrix});
    products<P>(team, K, H_, rows, [&](const Packed<P>& packed, int64_t begin, int64_t end) {
      times(packed, matrix, 0, begin, end, a_.hidden, H_, increase);
    });
  }

  void feed_forward(Team::Member& team, Own& own, const DecoderLayer& layer) const {
    const bool gated = layer.gate.weight != nullptr;
    const auto use = [&](const Packed<P>& x, int64_t begin, int64_t end) {
      if (gated) times(x, layer.gate, 0, begin, end, inner_, F_, set);
      times(x, layer.up, layer.gate.added.rank, begin, end, gated ? factor_ : inner_, F_, set);
      for (int64_t m = 0; m < M_; ++m)
        activate(
            a_.activation, inner_ + m * F_ + begin, gated ? factor_ + m * F_ + begin : nullptr,
            end - begin);
    };
    const auto rows = normed(own, layer.norm2);
    reduce(team, H_, rows, {&layer.gate, &layer.up});
    products<P>(team, H_, F_, rows, use);
  }

  void normalize_rows(Team::Member& team, Own& own, const Norm& norm) const {
    const Normalizer normalizer(a_, own, norm, H_);
    team.shares(M_, [&](int64_t m) { normalizer(a_.hidden + m * H_, a_.hidden + m * H_); });
  }

  const DecoderLayers& a_;
  const int64_t threads_, M_, H_, F_, query_, key_, ranks_;
  const AttentionPlan plan_;
  const std::unique_ptr<float[]> memory_;
  // [M, Hq * D] queries and their attention, [M, Hkv * D] keys and values, [M, F] twice, and
  // [M, ranks] sums of the terms of an adapter.
  float *q_, *mixed_, *k_, *v_, *inner_, *factor_, *low_;
};

template <typename T, Storage STORAGE>
void layers_of(const DecoderLayers& a) {
  const int64_t threads = torch::stable::get_num_threads();
  const LayersOf<T, STORAGE> layers(a, threads);
  Team::run(threads, [&](Team::Member& member) { layers.run(member); });
}

template <typename T>
void layers_of_type(const DecoderLayers& a) {
  switch (a.storage) {
    case Storage::rows: return layers_of<T, Storage::rows>(a);
    case Storage::columns: return layers_of<T, Storage::columns>(a);
    case Storage::int8: return layers_of<T, Storage::int8>(a);
  }
}

void decoder_layers(const DecoderLayers& a) {
  switch (a.attention.type) {
    case Type::f32: return layers_of_type<float>(a);
    case Type::bf16: return layers_of_type<BFloat16>(a);
    case Type::f16: return layers_of_type<Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
