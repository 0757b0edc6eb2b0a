// branch_attention: out = softmax(scale * q K^T) V over the prefix, in pages, and the tail. The prefix
// is cut into splits of SPLIT tokens; a unit of work is one split of one sequence and kv head, which
// reads its keys and values once for all N * G query rows. States (maximum, sum, weighted values) of
// the splits are merged with the tail afterwards. Splits depend on the length alone, and a row is
// computed in one way however many there are, so it has the same bits alone, next to any other rows,
// in any batch, and with any number of threads.
// Floor: 2 * Hkv * D * itemsize bytes per token of the prefix; 4 * Hq * N * D flops per token.

namespace args_fast::ARGS_FAST_ISA {
namespace {

constexpr int64_t SPLIT = 256;  // tokens per unit: its keys and values stay in the second cache level

// The softmax state of R query rows: weighted values [R, W], maxima and sums [R].
struct State {
  float *values, *maximum, *total;
};

// Buffers of one thread, sized once per call.
struct Buffers {
  std::vector<float> q, k, v, turned, scores;
};

template <typename T>
void attend_split(
    const Attention& a, int64_t b, int64_t h, int64_t split, const int64_t* depth, State state,
    Buffers& buffers) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, D = a.D, W = padded(D), length = a.lengths[b];
  const int64_t begin = split * SPLIT, end = std::min(begin + SPLIT, length);
  std::fill_n(state.values, R * W, 0.0f);
  std::fill_n(state.maximum, R, -INFINITE);
  std::fill_n(state.total, R, 0.0f);
  // The rows of the tail stand at length + depth >= length, so the first one sees farthest back.
  if (a.window > 0 && end - 1 <= length - a.window) return;

  // Where the rows of a block stand. The next block's are fetched while this one's are worked on: a
  // head's rows lie Hkv * D apart, too far for the processor to foresee.
  const T *k_rows[2][BLOCK], *v_rows[2][BLOCK];
  const auto find = [&](int64_t first, const T** k_found, const T** v_found) {
    const int32_t* table = a.page_table + b * a.table_stride;
    for (int64_t j = 0; j < std::min(BLOCK, end - first); ++j) {
      const int64_t page = table[(first + j) / a.page_size], row = (first + j) % a.page_size;
      k_found[j] = static_cast<const T*>(a.k_pages) + page * a.k_page_stride[0] +
          row * a.k_page_stride[1] + h * a.k_page_stride[2];
      v_found[j] = static_cast<const T*>(a.v_pages) + page * a.v_page_stride[0] +
          row * a.v_page_stride[1] + h * a.v_page_stride[2];
      prefetch(k_found[j], D * sizeof(T));
      prefetch(v_found[j], D * sizeof(T));
    }
  };
  find(begin, k_rows[0], v_rows[0]);

  float* q = buffers.q.data();
  for (int64_t n = 0; n < a.N; ++n)
    for (int64_t g = 0; g < G; ++g) {
      float* row = q + (n * G + g) * W;
      widen(
          static_cast<const T*>(a.q) + b * a.q_stride[0] + n * a.q_stride[1] +
              (h * G + g) * a.q_stride[2],
          D, row);
      for (int64_t d = 0; d < D; ++d) row[d] *= a.scale;
    }

  float *turned = buffers.turned.data(), *scores = buffers.scores.data();
  const float *k[BLOCK], *v[BLOCK];
  for (int64_t first = begin; first < end; first += BLOCK) {
    const int64_t count = std::min(BLOCK, end - first), parity = (first - begin) / BLOCK % 2;
    if (first + BLOCK < end) find(first + BLOCK, k_rows[1 - parity], v_rows[1 - parity]);
    for (int64_t j = 0; j < count; ++j) {
      k[j] = floats(k_rows[parity][j], D, buffers.k.data() + j * W);
      v[j] = floats(v_rows[parity][j], D, buffers.v.data() + j * W);
    }
    for (int64_t j = count; j < BLOCK; ++j) k[j] = k[0];  // scored, and masked below
    transpose(k, W, turned);
    for (int64_t r = 0; r < R; r += ROWS) {
      const int64_t rows = std::min(ROWS, R - r);
      for_rows(rows, [&](auto n) { score<n()>(q + r * W, turned, D, W, scores); });
      for (int64_t i = 0; i < rows; ++i) {
        float* s = scores + i * BLOCK;
        if (a.softcap != 0.0f)
          for (int64_t j = 0; j < count; ++j) s[j] = capped(s[j], a.softcap);
        for (int64_t j = count; j < BLOCK; ++j) s[j] = -INFINITE;
        if (a.window > 0) {
          const int64_t oldest = length + depth[(r + i) / G] - a.window;  // not seen, nor before it
          for (int64_t j = 0; j < count && first + j <= oldest; ++j) s[j] = -INFINITE;
        }
        update(
            s, W, state.values + (r + i) * W, state.maximum[r + i], state.total[r + i]);
      }
      float* values = state.values + r * W;
      for_rows(rows, [&](auto n) { accumulate<n()>(scores, v, count, W, values); });
    }
  }
}

// Merge the splits' states of one tail row's G heads with the tail and the sinks, and write them.
template <typename T>
void merge(
    const Attention& a, int64_t b, int64_t h, int64_t n, const int64_t* depth,
    const State& states, int64_t splits, Buffers& buffers) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, D = a.D, W = padded(D);
  float *q = buffers.q.data(), *row = buffers.k.data(), *scores = buffers.scores.data();
  float* values = buffers.v.data();
  for (int64_t g = 0; g < G; ++g) {
    const int64_t head = h * G + g, r = n * G + g;
    widen(
        static_cast<const T*>(a.q) + b * a.q_stride[0] + n * a.q_stride[1] +
            head * a.q_stride[2],
        D, q);
    for (int64_t d = 0; d < D; ++d) q[d] *= a.scale;

    const float sink = a.sinks == nullptr ? -INFINITE : a.sinks[head];
    float highest = sink;
    for (int64_t s = 0; s < splits; ++s) {
      const float m = states.maximum[s * R + r];
      if (m > highest || m != m) highest = m;
    }
    for (int64_t j = 0; j < a.N; ++j) {
      const bool seen =
          a.mask[n * a.N + j] && (a.window == 0 || depth[n] - depth[j] < a.window);
      scores[j] = -INFINITE;
      if (!seen) continue;
      widen(
          static_cast<const T*>(a.tail_k) + b * a.tail_k_stride[0] + j * a.tail_k_stride[1] +
              h * a.tail_k_stride[2],
          D, row);
      scores[j] = capped(dot(q, row, W), a.softcap);
      if (scores[j] > highest || scores[j] != scores[j]) highest = scores[j];
    }

    float total = sink == -INFINITE ? 0.0f : exp_negative(sink - highest);
    std::fill_n(values, W, 0.0f);
    for (int64_t s = 0; s < splits; ++s) {
      if (states.maximum[s * R + r] == -INFINITE) continue;
      const float share = exp_negative(states.maximum[s * R + r] - highest);
      total += share * states.total[s * R + r];
      const float* from = states.values + (s * R + r) * W;
      for (int64_t d = 0; d < W; d += WIDTH)
        store(values + d, load(values + d) + share * load(from + d));
    }
    for (int64_t j = 0; j < a.N; ++j) {
      if (scores[j] == -INFINITE) continue;
      const float weight = exp_negative(scores[j] - highest);
      total += weight;
      widen(
          static_cast<const T*>(a.tail_v) + b * a.tail_v_stride[0] + j * a.tail_v_stride[1] +
              h * a.tail_v_stride[2],
          D, row);
      for (int64_t d = 0; d < W; d += WIDTH)
        store(values + d, load(values + d) + weight * load(row + d));
    }
    T* out = static_cast<T*>(a.out) + ((b * a.N + n) * a.Hq + head) * D;
    for (int64_t d = 0; d < D; ++d) from_float(values[d] / total, out[d]);
  }
}

template <typename T>
void attention_of(const Attention& a) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, W = padded(a.D);
  std::vector<int64_t> depth(a.N, -1), first(a.B + 1, 0);
  for (int64_t i = 0; i < a.N; ++i)
    for (int64_t j = 0; j < a.N; ++j) depth[i] += a.mask[i * a.N + j];
  for (int64_t b = 0; b < a.B; ++b)
    first[b + 1] = first[b] + (a.lengths[b] + SPLIT - 1) / SPLIT;

  // States of all splits: [B's splits, Hkv] of R rows each, in the order (b, h, split).
  const int64_t units = first[a.B] * a.Hkv;
  std::unique_ptr<float[]> memory(new float[units * R * (W + 2)]);
  State all{memory.get(), memory.get() + units * R * W, memory.get() + units * R * (W + 1)};
  const auto from = [&](int64_t unit) {
    return State{all.values + unit * R * W, all.maximum + unit * R, all.total + unit * R};
  };
  const auto buffers = [&] {
    Buffers mine;
    mine.q.resize(R * W);
    mine.k.resize(BLOCK * W);
    mine.v.resize(BLOCK * W);
    mine.turned.resize(BLOCK * W);
    mine.scores.resize(std::max(ROWS * BLOCK, a.N));
    return mine;
  };

  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    Buffers mine = buffers();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b =
          std::upper_bound(first.begin(), first.end(), unit / a.Hkv) - first.begin() - 1;
      const int64_t splits = first[b + 1] - first[b], within = unit - first[b] * a.Hkv;
      attend_split<T>(
          a, b, within / splits, within % splits, depth.data(), from(unit), mine);
    }
  });
  torch::stable::parallel_for(0, a.B * a.Hkv * a.N, 16, [&](int64_t begin, int64_t end) {
    Buffers mine = buffers();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit % a.N, h = unit / a.N % a.Hkv, b = unit / a.N / a.Hkv;
      const int64_t splits = first[b + 1] - first[b];
      const int64_t at = first[b] * a.Hkv + h * splits;
      merge<T>(a, b, h, n, depth.data(), from(at), splits, mine);
    }
  });
}

void attention(const Attention& a) {
  switch (a.type) {
    case Type::f32: return attention_of<float>(a);
    case Type::bf16: return attention_of<BFloat16>(a);
    case Type::f16: return attention_of<Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
