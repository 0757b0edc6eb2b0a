// select: reward = head . hidden, score = logprob + w * reward, first maximum of score / t + noise.

namespace args_fast::ARGS_FAST_ISA {
namespace {

template <typename T>
void select_of(const Select& a) {
  const int64_t W = padded(a.H);
  std::vector<float> weight(W), row(W), rewards(a.k);
  widen(a.weight, a.H, weight.data());
  for (int64_t b = 0; b < a.B; ++b) {
    bool bad_reward = false, bad_logprob = false;
    for (int64_t i = 0; i < a.k; ++i) {
      widen(
          static_cast<const T*>(a.hidden) + b * a.hidden_stride[0] + i * a.hidden_stride[1], a.H,
          row.data());
      rewards[i] = dot(row.data(), weight.data(), W) + a.bias;
      bad_reward |= !(std::fabs(rewards[i]) < INFINITE);
      bad_logprob |= a.logprobs[b * a.k + i] != a.logprobs[b * a.k + i];
    }
    const float nan = std::numeric_limits<float>::quiet_NaN();
    int64_t best = 0;
    float best_key = -INFINITE, best_score = 0.0f;
    for (int64_t i = 0; i < a.k; ++i) {
      const float s = a.logprobs[b * a.k + i] + a.w[b] * rewards[i];
      const float key = s / a.temperature[b] + a.noise[b * a.noise_stride + i];
      // A NaN (inf - inf, say) is the largest, as it is for torch.argmax.
      if (i == 0 || key > best_key || (key != key && best_key == best_key)) {
        best = i;
        best_key = key;
        best_score = s;
      }
    }
    const bool broken = bad_reward || bad_logprob;
    if (broken) best = 0;
    a.branch[b] = best;
    a.reward[b] = bad_reward ? nan : rewards[best];
    a.score[b] = broken ? nan : best_score;
  }
}

void select(const Select& a) {
  switch (a.type) {
    case Type::f32: return select_of<float>(a);
    case Type::bf16: return select_of<BFloat16>(a);
    case Type::f16: return select_of<Half>(a);
  }
}

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
