// decoder_layers: all layers of a decoder over the rows of a tail, in one go.
//
//   pre-norm   x += o(attention(norm1(x)));  x += down(act(gate(norm2(x))) * up(norm2(x)))
//   post-norm  x = norm1(x + o(attention(x)));  x = norm2(x + down(act(up(x))))
//
// A layer is a few phases (team.h), in each of which the threads share the rows of the weights, or the
// units of the attention. Whatever is small is computed by every thread for itself: the norm before a
// product with the packing of its rows. Values between the products are float32; keys and values are
// stored in the tail in their own type before the attention reads them. Rows of two readers go through
// the products together, and attend each to its own cache. The terms of an adapter are added where a
// thread has made its part of a product; the sums x · aᵀ that they take are made by every thread for
// itself, or, where these are many, in a phase before.
// Every part gives a row the same bits whatever rows are with it.
// Floor: the bytes of the weights, once, and those of the prefixes' keys and values.

namespace args_fast::ARGS_FAST_ISA {
namespace {

template <typename T, Storage STORAGE>
class LayersOf {
  static constexpr bool COLUMNS = STORAGE == Storage::columns, INTEGERS = STORAGE == Storage::int8;
  typedef typename ProductOf<T, STORAGE>::Product P;
  typedef typename P::Weight Weight;
  // Of the terms of an adapter, and what reads x as it does.
  typedef std::conditional_t<STORAGE == Storage::rows, P, Widened<T>> A;
  static constexpr bool READS_ALIKE =
      std::is_same_v<typename P::Input, typename A::Input> && P::STEP == A::STEP;
  typedef std::conditional_t<READS_ALIKE, P, A> PA;

 public:
  LayersOf(const DecoderLayers& a, int64_t threads)
      : a_(a), threads_(threads), rows_(a.readers[0].attention.B * a.readers[0].attention.N),
        M_(a.reader_count * rows_), first_adapted_(M_ - rows_), H_(a.H), F_(a.F),
        query_(a.readers[0].attention.Hq * a.readers[0].attention.D),
        key_(a.readers[0].attention.Hkv * a.readers[0].attention.D), ranks_(most_ranks(a)),
        memory_(new float[M_ * (2 * query_ + 2 * key_ + 2 * F_ + ranks_)]) {
    for (int64_t i = 0; i < a.reader_count; ++i) plans_.emplace_back(a.readers[i].attention);
    q_ = memory_.get();
    mixed_ = q_ + M_ * query_;
    k_ = mixed_ + M_ * query_;
    v_ = k_ + M_ * key_;
    inner_ = v_ + M_ * key_;
    factor_ = inner_ + M_ * F_;
    low_ = factor_ + M_ * F_;
  }

  void run(Team::Member& team) const {
    Own own(a_, M_ * ranks_);
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
    Own(const DecoderLayers& a, int64_t sums)
        : buffers(a.readers[0].attention), row(padded(a.H)),
          weight(padded(std::max(a.H, a.readers[0].attention.D))), bias(weight.size()), low(sums) {}

    Buffers<T> buffers;
    std::vector<float> row, weight, bias, low;
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

  // Weight rows of a thread's part are multiples of this. It takes its part in one go: every new
  // beginning waits for memory once, which the processor cannot foresee.
  static constexpr int64_t LEAST = COLUMNS ? SINGLE_PANEL * WIDTH : 16;

  typedef std::initializer_list<const Matrix*> Matrices;

  // Call use(x, low, begin, end) for parts of N weight rows of the matrices, where x are the rows
  // [M, K] that `rows` gives, and low [M, ranks_] has the sums x · aᵀ of the matrices' terms.
  template <typename Rows, typename Use>
  void products(
      Team::Member& team, Own& own, int64_t K, int64_t N, const Rows& rows, Matrices matrices,
      const Use& use) const {
    const auto packed_in = [&](auto& x) -> const auto& {
      if (!x) {
        x.emplace(M_, K);
        rows([&](int64_t m, const float* row) { x->pack(m, row); });
      }
      return *x;
    };
    std::optional<Packed<P>> x;
    std::optional<Packed<PA>> x_of_terms;
    const auto packed = [&]() -> const auto& { return packed_in(x); };
    const auto packed_for_terms = [&]() -> const auto& {
      if constexpr (READS_ALIKE)
        return packed_in(x);
      else
        return packed_in(x_of_terms);
    };
    const int64_t ranks = ranks_of(matrices);
    bool reduced = ranks == 0;
    float* low = own.low.data();
    if (ranks * threads_ > N / WORTH_A_PHASE) {
      low = low_;
      reduced = true;
      team.parts(ranks, [&](int64_t begin, int64_t end) {
        reduce(packed_for_terms(), matrices, begin, end, low);
      });
    }
    const auto part = [&](int64_t begin, int64_t end) {
      if (!reduced) reduce(packed_for_terms(), matrices, 0, ranks, low);
      reduced = true;
      use(packed(), low, begin, end);
    };
    team.parts(N, part, LEAST);
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
      most = std::max(
          {most, ranks_of({&layer.q, &layer.k, &layer.v}), ranks_of({&layer.gate, &layer.up}),
           layer.o.added.rank, layer.down.added.rank});
    }
    return most;
  }

  static int64_t ranks_of(Matrices matrices) {
    int64_t ranks = 0;
    for (const Matrix* matrix : matrices) ranks += matrix->added.rank;
    return ranks;
  }

  // Columns [begin, end) of low: x · aᵀ of the terms of these matrices, one after the other.
  void reduce(
      const Packed<PA>& x, Matrices matrices, int64_t begin, int64_t end, float* low) const {
    for (const Matrix* matrix : matrices) {
      const LowRank& term = matrix->added;
      const int64_t first = std::max<int64_t>(begin, 0), last = std::min(end, term.rank);
      const auto emit = [&](int64_t m, int64_t n, const float* sums, int64_t count) {
        std::copy_n(sums, count, low + m * ranks_ + n);
      };
      if (first < last)
        x.template times<A>(
            static_cast<const T*>(term.a), term.stride, first, last, emit, first_adapted_);
      begin -= term.rank;
      end -= term.rank;
      low += term.rank;
    }
  }

  // Add a matrix's term, of which low has the sums, to results [begin, end) of the adapted rows.
  void add_term(
      const Matrix& matrix, const float* low, int64_t begin, int64_t end, float* to,
      int64_t width) const {
    const LowRank& term = matrix.added;
    if (term.rank == 0 && term.bias == nullptr) return;
    for (int64_t n = begin; n < end; n += WIDTH) {
      const int64_t count = end - n;
      for (int64_t m = first_adapted_; m < M_; ++m) {
        float* place = to + m * width + n;
        Vector sum = load_part(place, count);
        for (int64_t r = 0; r < term.rank; ++r) {
          const Vector b = load_part(term.b + r * matrix.rows + n, count);
          sum = multiply_add(splat(low[m * ranks_ + r]), b, sum);
        }
        if (term.bias != nullptr) sum += load_part(term.bias + n, count);
        store_part(place, sum, count);
      }
    }
  }

  // put(place of (m, n), results from n on, count) for weight rows [begin, end) of a matrix, whose
  // results are [M, width]; then its term, of which low has the sums.
  template <typename Put>
  void times(
      const Packed<P>& x, const Matrix& matrix, const float* low, int64_t begin, int64_t end,
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
    add_term(matrix, low, begin, end, to, width);
  }

  static void set(float* place, Vector v, int64_t count) { store_part(place, v, count); }
  static void increase(float* place, Vector v, int64_t count) {
    store_part(place, load_part(place, count) + v, count);
  }

  // Queries, keys and values of all rows.
  void project(Team::Member& team, Own& own, const DecoderLayer& layer) const {
    const auto use = [&](const Packed<P>& x, const float* low, int64_t begin, int64_t end) {
      const std::pair<const Matrix*, float*> parts[] = {
          {&layer.q, q_}, {&layer.k, k_}, {&layer.v, v_}};
      for (const auto& [matrix, to] : parts) {
        const int64_t rows = matrix->rows, first = std::max<int64_t>(begin, 0),
                      last = std::min(end, rows);
        if (first < last) times(x, *matrix, low, first, last, to, rows, set);
        begin -= rows;
        end -= rows;
        low += matrix->added.rank;
      }
    };
    products(
        team, own, H_, query_ + 2 * key_, normed(own, layer.norm1), {&layer.q, &layer.k, &layer.v},
        use);
  }

  // The attention of each reader in layer l.
  std::array<Attention, 2> attention_of(const DecoderLayer& layer, int64_t l) const {
    std::array<Attention, 2> found;
    for (int64_t i = 0; i < a_.reader_count; ++i) {
      const auto& stride = a_.readers[i].layer_stride;
      Attention& at = found[i] = a_.readers[i].attention;
      const int64_t query_stride[] = {at.N * query_, query_, at.D};
      std::copy_n(query_stride, 3, at.q_stride);
      at.q = q_ + i * rows_ * query_;
      at.out = mixed_ + i * rows_ * query_;
      at.tail_k = static_cast<const T*>(at.tail_k) + l * stride.tail_k;
      at.tail_v = static_cast<const T*>(at.tail_v) + l * stride.tail_v;
      at.k_pages = static_cast<const T*>(at.k_pages) + l * stride.k_pages;
      at.v_pages = static_cast<const T*>(at.v_pages) + l * stride.v_pages;
      at.scale = layer.scale;
      at.window = layer.window;
    }
    return found;
  }

  void attend(Team::Member& team, Own& own, const DecoderLayer& layer, int64_t l) const {
    const std::array<Attention, 2> at = attention_of(layer, l);
    const int64_t units = plans_[0].units(at[0]), merges = plans_[0].merges();
    team.parts(M_, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) place_row(at[m / rows_], own, layer, m);
    });
    team.parts(a_.reader_count * units, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < a_.reader_count; ++i) {
        const int64_t last = std::min(end - i * units, units);
        plans_[i].template attend<T, float>(at[i], begin - i * units, last, own.buffers);
      }
    });
    team.parts(a_.reader_count * merges, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t i = unit / merges;
        plans_[i].template finish<T, float>(at[i], unit % merges, own.buffers);
      }
    });
  }

  // Norm and turn the heads of row m, and store its keys and values in the tail of its reader.
  void place_row(const Attention& at, Own& own, const DecoderLayer& layer, int64_t m) const {
    const int64_t D = at.D, place = m % rows_, b = place / at.N, n = place % at.N;
    const auto prepare = [&](float* heads, int64_t count, const Norm& norm) {
      const Normalizer normalizer(a_, own, norm, D);
      for (int64_t h = 0; h < count; ++h) {
        float* x = heads + h * D;
        if (norm.weight != nullptr) normalizer(x, x);
        if (a_.cos != nullptr)
          rotate(x, a_.cos + place * a_.rotary, a_.sin + place * a_.rotary, a_.rotary / 2);
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
    const auto use = [&](const Packed<P>& packed, const float* low, int64_t begin, int64_t end) {
      times(packed, matrix, low, begin, end, a_.hidden, H_, increase);
    };
    products(team, own, K, H_, rows, {&matrix}, use);
  }

  void feed_forward(Team::Member& team, Own& own, const DecoderLayer& layer) const {
    const bool gated = layer.gate.weight != nullptr;
    const auto use = [&](const Packed<P>& x, const float* low, int64_t begin, int64_t end) {
      if (gated) times(x, layer.gate, low, begin, end, inner_, F_, set);
      float* up = gated ? factor_ : inner_;
      times(x, layer.up, low + layer.gate.added.rank, begin, end, up, F_, set);
      for (int64_t m = 0; m < M_; ++m)
        activate(
            a_.activation, inner_ + m * F_ + begin, gated ? factor_ + m * F_ + begin : nullptr,
            end - begin);
    };
    products(team, own, H_, F_, normed(own, layer.norm2), {&layer.gate, &layer.up}, use);
  }

  void normalize_rows(Team::Member& team, Own& own, const Norm& norm) const {
    const Normalizer normalizer(a_, own, norm, H_);
    team.parts(M_, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) normalizer(a_.hidden + m * H_, a_.hidden + m * H_);
    });
  }

  // Of the time of a phase's products at most this part may be spent on sums of an adapter's terms by
  // every thread for itself; more of them are worth a phase of their own.
  static constexpr int64_t WORTH_A_PHASE = 4;

  const DecoderLayers& a_;
  // Rows of a reader; all of them, and the first one that gets the terms of an adapter.
  const int64_t threads_, rows_, M_, first_adapted_, H_, F_, query_, key_, ranks_;
  std::vector<AttentionPlan> plans_;  // of each reader
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
  with_storage<T>(a.storage, [&](auto storage) { layers_of<T, storage()>(a); });
}

void decoder_layers(const DecoderLayers& a) {
  switch (a.readers[0].attention.type) {
    case Type::f32: return layers_of_type<float>(a);
    case Type::bf16: return layers_of_type<BFloat16>(a);
    case Type::f16: return layers_of_type<Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
