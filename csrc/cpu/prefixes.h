// The arguments that branch_attention and decoder_layers share: a tail over prefixes that lie in pages.
#pragma once

#include "checks.h"
#include "kernels.h"

namespace args_fast {

// What is the same for all queries: tail_k, tail_v [..., B, N, Hkv, D], k_pages, v_pages [..., pages,
// page_size, Hkv, D], where ... is nothing, or the layers. Without a tail_mask a row sees those before it.
inline Attention over_prefixes(
    const Tensor& tail_k, const Tensor& tail_v, const Tensor& k_pages, const Tensor& v_pages,
    const Tensor& page_table, const Tensor& prefix_lengths, const std::optional<Tensor>& tail_mask,
    std::vector<int64_t> layers) {
  const int64_t lead = layers.size();
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages})
    STD_TORCH_CHECK(
        tensor->dim() == lead + 4, "args_fast: the tail and the pages must have ", lead + 4,
        " dimensions");
  Attention a{};
  a.B = tail_k.size(lead);
  a.N = tail_k.size(lead + 1);
  a.Hkv = tail_k.size(lead + 2);
  a.D = tail_k.size(lead + 3);
  a.page_size = k_pages.size(lead + 1);
  const int64_t pages = k_pages.size(lead);
  const auto per_layer = [&](std::vector<int64_t> size) {
    size.insert(size.begin(), layers.begin(), layers.end());
    return size;
  };
  check_shape(tail_k, per_layer({a.B, a.N, a.Hkv, a.D}), "tail_k");
  check_shape(tail_v, per_layer({a.B, a.N, a.Hkv, a.D}), "tail_v");
  check_shape(k_pages, per_layer({pages, a.page_size, a.Hkv, a.D}), "k_pages");
  check_shape(v_pages, per_layer({pages, a.page_size, a.Hkv, a.D}), "v_pages");
  check_shape(page_table, {a.B, ANY}, "page_table");
  check_shape(prefix_lengths, {a.B}, "prefix_lengths");
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages}) {
    STD_TORCH_CHECK(
        tensor->scalar_type() == tail_k.scalar_type(),
        "args_fast: the tail and the pages must be of one dtype");
    check_rows(*tensor, "K, V");
  }
  check_type(page_table, ScalarType::Int, "page_table");
  check_type(prefix_lengths, ScalarType::Int, "prefix_lengths");
  STD_TORCH_CHECK(prefix_lengths.is_contiguous(), "args_fast: prefix_lengths must be contiguous");
  if (tail_mask.has_value()) {
    check_shape(*tail_mask, {a.N, a.N}, "tail_mask");
    check_type(*tail_mask, ScalarType::Bool, "tail_mask");
    STD_TORCH_CHECK(tail_mask->is_contiguous(), "args_fast: tail_mask must be contiguous");
    a.mask = static_cast<const bool*>(tail_mask->data_ptr());
  }
  check_rows(page_table, "page_table");

  a.lengths = static_cast<const int32_t*>(prefix_lengths.data_ptr());
  a.page_table = static_cast<const int32_t*>(page_table.data_ptr());
  a.table_stride = page_table.stride(0);
  for (int64_t b = 0; b < a.B; ++b) {
    STD_TORCH_CHECK(
        0 <= a.lengths[b] && a.lengths[b] <= page_table.size(1) * a.page_size,
        "args_fast: a prefix length lies outside its page table");
    if (a.lengths[b] > 0)
      check_pages(a.page_table + b * a.table_stride, (a.lengths[b] - 1) / a.page_size + 1, pages);
  }
  a.type = type_of(tail_k);
  a.tail_k = tail_k.data_ptr();
  a.tail_v = tail_v.data_ptr();
  a.k_pages = k_pages.data_ptr();
  a.v_pages = v_pages.data_ptr();
  strides_of(tail_k, lead, 3, a.tail_k_stride);
  strides_of(tail_v, lead, 3, a.tail_v_stride);
  strides_of(k_pages, lead, 3, a.k_page_stride);
  strides_of(v_pages, lead, 3, a.v_page_stride);
  return a;
}

}  // namespace args_fast
