// branch_attention as torch sees it.
#include "ops.h"
#include "prefixes.h"

namespace args_fast {

Tensor branch_attention(
    const Tensor& q, const Tensor& tail_k, const Tensor& tail_v, const Tensor& k_pages,
    const Tensor& v_pages, const Tensor& page_table, const Tensor& prefix_lengths,
    const Tensor& tail_mask, double scale, int64_t sliding_window, double softcap,
    std::optional<Tensor> sinks) {
  Attention a =
      over_prefixes(tail_k, tail_v, k_pages, v_pages, page_table, prefix_lengths, tail_mask, {});
  check_shape(q, {a.B, a.N, ANY, a.D}, "q");
  a.Hq = q.size(2);
  STD_TORCH_CHECK(
      a.Hkv > 0 && a.Hq % a.Hkv == 0, "args_fast: query heads must be a multiple of kv heads");
  STD_TORCH_CHECK(
      sliding_window >= 0, "args_fast: sliding_window is ", sliding_window, "; 0 means none");
  check_type(q, tail_k.scalar_type(), "q");
  check_rows(q, "q");
  Tensor out = empty(q, {a.B, a.N, a.Hq, a.D}, q.scalar_type());
  std::vector<float> sink_values;
  if (sinks.has_value()) {
    check_shape(*sinks, {a.Hq}, "sinks");
    sink_values = floats_of(*sinks);
    a.sinks = sink_values.data();
  }
  a.q = q.data_ptr();
  a.out = out.data_ptr();
  strides_of(q, 0, 3, a.q_stride);
  a.scale = static_cast<float>(scale);
  a.softcap = static_cast<float>(softcap);
  a.window = sliding_window;
  kernels().attention(a);
  return out;
}

}  // namespace args_fast
