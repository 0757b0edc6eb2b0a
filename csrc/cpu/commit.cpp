// commit. It moves bytes only, so it is the same for every type and instruction set.
#include "checks.h"
#include "ops.h"

namespace args_fast {

void commit(
    const Tensor& tail_k, const Tensor& tail_v, const Tensor& branch, const Tensor& k_pages,
    const Tensor& v_pages, const Tensor& page_table, const Tensor& lengths) {
  check_shape(tail_k, {ANY, ANY, ANY, ANY, ANY}, "tail_k");
  check_shape(k_pages, {ANY, ANY, ANY, ANY, ANY}, "k_pages");
  const int64_t L = tail_k.size(0), B = tail_k.size(1), N = tail_k.size(2);
  const int64_t Hkv = tail_k.size(3), D = tail_k.size(4);
  const int64_t pages = k_pages.size(1), page_size = k_pages.size(2);
  check_shape(tail_v, {L, B, N, Hkv, D}, "tail_v");
  check_shape(k_pages, {L, pages, page_size, Hkv, D}, "k_pages");
  check_shape(v_pages, {L, pages, page_size, Hkv, D}, "v_pages");
  check_shape(page_table, {B, ANY}, "page_table");
  check_shape(branch, {B}, "branch");
  check_shape(lengths, {B}, "lengths");
  for (const Tensor* tensor : {&tail_k, &tail_v, &k_pages, &v_pages})
    STD_TORCH_CHECK(
        tensor->is_contiguous() && tensor->scalar_type() == tail_k.scalar_type(),
        "args_fast: tail and pages must be contiguous and of one dtype");
  check_type(branch, ScalarType::Long, "branch");
  check_type(page_table, ScalarType::Int, "page_table");
  check_type(lengths, ScalarType::Int, "lengths");
  check_rows(page_table, "page_table");
  STD_TORCH_CHECK(
      branch.is_contiguous() && lengths.is_contiguous(),
      "args_fast: branch and lengths must be contiguous");
  const int64_t row = Hkv * D * (type_of(tail_k) == Type::f32 ? 4 : 2);
  const auto* table = static_cast<const int32_t*>(page_table.data_ptr());
  const auto* winner = static_cast<const int64_t*>(branch.data_ptr());
  auto* length = static_cast<int32_t*>(lengths.data_ptr());
  for (int64_t b = 0; b < B; ++b) {  // all of them before anything is written
    STD_TORCH_CHECK(
        0 <= length[b] && length[b] < page_table.size(1) * page_size && 0 <= winner[b] &&
            winner[b] < N,
        "args_fast: commit is outside the page table or the tail");
    check_pages(table + b * page_table.stride(0) + length[b] / page_size, 1, pages);
  }
  auto* k_to = static_cast<char*>(k_pages.data_ptr());
  auto* v_to = static_cast<char*>(v_pages.data_ptr());
  const auto* k_from = static_cast<const char*>(tail_k.data_ptr());
  const auto* v_from = static_cast<const char*>(tail_v.data_ptr());
  for (int64_t b = 0; b < B; ++b) {
    const int64_t page = table[b * page_table.stride(0) + length[b] / page_size];
    for (int64_t layer = 0; layer < L; ++layer) {
      const int64_t from = ((layer * B + b) * N + winner[b]) * row;
      const int64_t to = ((layer * pages + page) * page_size + length[b] % page_size) * row;
      std::memcpy(k_to + to, k_from + from, row);
      std::memcpy(v_to + to, v_from + from, row);
    }
    ++length[b];
  }
}

}  // namespace args_fast
