// The two halves of branch_attention: one split of a prefix for all rows of a kv head, and the merge of
// the splits with the tail for one row.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// The softmax state of R query rows: weighted values [R, W], maxima and sums [R].
struct State {
  float *values, *maximum, *total;
};

// Buffers of one thread, sized once per call.
struct Buffers {
  explicit Buffers(const Attention& a)
      : q(a.N * (a.Hq / a.Hkv) * padded(a.D)), k(BLOCK * padded(a.D)), v(SPLIT * padded(a.D)),
        turned(BLOCK * padded(a.D)), scores(a.N * std::max(a.Hq / a.Hkv * SPLIT, int64_t(1))) {}

  std::vector<float> q, k, v, turned, scores;
};

// Keys, values and the tail are of type T; queries and the result of type Q.
template <typename T, typename Q>
void attend_split(
    const Attention& a, int64_t b, int64_t h, int64_t split, const int64_t* depth, State state,
    Buffers& buffers) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, D = a.D, W = padded(D), length = a.lengths[b];
  const int64_t begin = split * SPLIT, end = std::min(begin + SPLIT, length);
  // The rows of the tail stand at length + depth >= length, so the first one sees farthest back.
  if (a.window > 0 && end - 1 <= length - a.window) {
    std::fill_n(state.values, R * W, 0.0f);
    std::fill_n(state.maximum, R, -INFINITE);
    std::fill_n(state.total, R, 0.0f);
    return;
  }

  // Rows of keys and values are fetched before they are worked on: a head's rows lie Hkv * D apart,
  // too far for the processor to foresee.
  const T *k_rows[SPLIT], *v_rows[SPLIT];
  const int32_t* table = a.page_table + b * a.table_stride;
  const int64_t count = end - begin;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t page = table[(begin + j) / a.page_size], row = (begin + j) % a.page_size;
    k_rows[j] = static_cast<const T*>(a.k_pages) + page * a.k_page_stride[0] +
                row * a.k_page_stride[1] + h * a.k_page_stride[2];
    v_rows[j] = static_cast<const T*>(a.v_pages) + page * a.v_page_stride[0] +
                row * a.v_page_stride[1] + h * a.v_page_stride[2];
    prefetch(k_rows[j], D * sizeof(T));
  }

  float* q = buffers.q.data();
  for (int64_t n = 0; n < a.N; ++n)
    for (int64_t g = 0; g < G; ++g) {
      float* row = q + (n * G + g) * W;
      widen(
          static_cast<const Q*>(a.q) + b * a.q_stride[0] + n * a.q_stride[1] +
              (h * G + g) * a.q_stride[2],
          D, row);
      for (int64_t d = 0; d < D; ++d) row[d] *= a.scale;
    }

  float *turned = buffers.turned.data(), *scores = buffers.scores.data();
  for (int64_t first = 0; first < count; first += BLOCK) {
    const float* k[BLOCK];
    for (int64_t j = 0; j < BLOCK; ++j) {
      // What comes after the last one is scored as it is, and masked below.
      const int64_t at = std::min(first + j, count - 1);
      k[j] = floats(k_rows[at], D, buffers.k.data() + j * W);
      if (first + j < count) prefetch(v_rows[at], D * sizeof(T));
    }
    transpose(k, W, turned);
    for (int64_t r = 0; r < R; r += ROWS)
      for_rows(std::min(ROWS, R - r), [&](auto rows) {
        score<rows()>(q + r * W, turned, D, W, scores + r * SPLIT + first);
      });
  }
  const int64_t scored = (count + BLOCK - 1) / BLOCK * BLOCK;
  for (int64_t r = 0; r < R; ++r) {
    float* s = scores + r * SPLIT;
    if (a.softcap != 0.0f)
      for (int64_t j = 0; j < count; ++j) s[j] = capped(s[j], a.softcap);
    for (int64_t j = count; j < scored; ++j) s[j] = -INFINITE;
    if (a.window > 0) {
      const int64_t oldest = length + depth[r / G] - a.window;  // not seen, nor what comes before
      for (int64_t j = 0; j < count && begin + j <= oldest; ++j) s[j] = -INFINITE;
    }
    soften(s, scored, state.maximum[r], state.total[r]);
  }
  const float* v[SPLIT];
  for (int64_t j = 0; j < count; ++j) v[j] = floats(v_rows[j], D, buffers.v.data() + j * W);
  for (int64_t r = 0; r < R; r += ROWS)
    for_rows(std::min(ROWS, R - r), [&](auto rows) {
      weigh<rows()>(scores + r * SPLIT, v, count, W, state.values + r * W);
    });
}

// Merge the splits' states of one tail row's G heads with the tail and the sinks, and write them.
template <typename T, typename Q>
void merge(
    const Attention& a, int64_t b, int64_t h, int64_t n, const int64_t* depth, const State& states,
    int64_t splits, Buffers& buffers) {
  const int64_t G = a.Hq / a.Hkv, R = a.N * G, D = a.D, W = padded(D);
  float *q = buffers.q.data(), *row = buffers.k.data(), *scores = buffers.scores.data();
  float* values = buffers.v.data();
  for (int64_t g = 0; g < G; ++g) {
    const int64_t head = h * G + g, r = n * G + g;
    widen(
        static_cast<const Q*>(a.q) + b * a.q_stride[0] + n * a.q_stride[1] + head * a.q_stride[2],
        D, q);
    for (int64_t d = 0; d < D; ++d) q[d] *= a.scale;

    const float sink = a.sinks == nullptr ? -INFINITE : a.sinks[head];
    float highest = sink;
    for (int64_t s = 0; s < splits; ++s) {
      const float m = states.maximum[s * R + r];
      if (m > highest || m != m) highest = m;
    }
    for (int64_t j = 0; j < a.N; ++j) {
      const bool seen = a.mask[n * a.N + j] && (a.window == 0 || depth[n] - depth[j] < a.window);
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
    Q* out = static_cast<Q*>(a.out) + ((b * a.N + n) * a.Hq + head) * D;
    for (int64_t d = 0; d < D; ++d) from_float(values[d] / total, out[d]);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
