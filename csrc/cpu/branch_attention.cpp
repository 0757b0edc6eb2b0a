// branch_attention as torch sees it.
#include "checks.h"
#include "ops.h"

namespace args_fast {

Tensor branch_attention(
    const Tensor& q, const Tensor& tail_k, const Tensor& tail_v, const Tensor& k_pages,
    const Tensor& v_pages, const Tensor& page_table, const Tensor& prefix_lengths,
    const Tensor& tail_mask, double scale, int64_t sliding_window, double softcap,
    std::optional<Tensor> sinks) {
  check_shape(q, {ANY, ANY, ANY, ANY}, "q");
  check_shape(k_pages, {ANY, ANY, ANY, ANY}, "k_pages");
  const int64_t B = q.size(0), N = q.size(1), Hq = q.size(2), D = q.size(3);
  const int64_t pages = k_pages.size(0), page_size = k_pages.size(1), Hkv = k_pages.size(2);
  STD_TORCH_CHECK(
      Hkv > 0 && Hq % Hkv == 0, "args_fast: query heads must be a multiple of kv heads");
  check_shape(k_pages, {pages, page_size, Hkv, D}, "k_pages");
  check_shape(v_pages, {pages, page_size, Hkv, D}, "v_pages");
  check_shape(tail_k, {B, N, Hkv, D}, "tail_k");
  check_shape(tail_v, {B, N, Hkv, D}, "tail_v");
  check_shape(page_table, {B, ANY}, "page_table");
  check_shape(prefix_lengths, {B}, "prefix_lengths");
  check_shape(tail_mask, {N, N}, "tail_mask");
  STD_TORCH_CHECK(
      sliding_window >= 0, "args_fast: sliding_window is ", sliding_window, "; 0 means none");
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages})
    STD_TORCH_CHECK(
        tensor->scalar_type() == q.scalar_type(),
        "args_fast: q, tail and pages must be of one dtype");
  check_type(page_table, ScalarType::Int, "page_table");
  check_type(prefix_lengths, ScalarType::Int, "prefix_lengths");
  check_type(tail_mask, ScalarType::Bool, "tail_mask");
  STD_TORCH_CHECK(
      tail_mask.is_contiguous() && prefix_lengths.is_contiguous(),
      "args_fast: tail_mask and prefix_lengths must be contiguous");
  check_rows(page_table, "page_table");
  check_rows(q, "q");
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages}) check_rows(*tensor, "K, V");

  const auto* lengths = static_cast<const int32_t*>(prefix_lengths.data_ptr());
  const auto* table = static_cast<const int32_t*>(page_table.data_ptr());
  for (int64_t b = 0; b < B; ++b) {
    STD_TORCH_CHECK(
        0 <= lengths[b] && lengths[b] <= page_table.size(1) * page_size,
        "args_fast: a prefix length lies outside its page table");
    if (lengths[b] > 0)
      check_pages(table + b * page_table.stride(0), (lengths[b] - 1) / page_size + 1, pages);
  }

  Tensor out = empty(q, {B, N, Hq, D}, q.scalar_type());
  std::vector<float> sink_values;
  if (sinks.has_value()) {
    check_shape(*sinks, {Hq}, "sinks");
    sink_values = floats_of(*sinks);
  }
  Attention a{};
  a.type = type_of(q);
  a.q = q.data_ptr();
  a.tail_k = tail_k.data_ptr();
  a.tail_v = tail_v.data_ptr();
  a.k_pages = k_pages.data_ptr();
  a.v_pages = v_pages.data_ptr();
  a.page_table = table;
  a.lengths = lengths;
  a.mask = static_cast<const bool*>(tail_mask.data_ptr());
  a.sinks = sinks.has_value() ? sink_values.data() : nullptr;
  a.out = out.data_ptr();
  a.B = B;
  a.N = N;
  a.Hq = Hq;
  a.Hkv = Hkv;
  a.D = D;
  a.page_size = page_size;
  strides_of(q, 3, a.q_stride);
  strides_of(tail_k, 3, a.tail_k_stride);
  strides_of(tail_v, 3, a.tail_v_stride);
  strides_of(k_pages, 3, a.k_page_stride);
  strides_of(v_pages, 3, a.v_page_stride);
  a.table_stride = page_table.stride(0);
  a.scale = static_cast<float>(scale);
  a.softcap = static_cast<float>(softcap);
  a.window = sliding_window;
  kernels().attention(a);
  return out;
}

}  // namespace args_fast
