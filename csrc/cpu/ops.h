// The CPU ops, each in a file of its own, and the kernels that they run.
#pragma once

#include "kernels.h"
#include "name.h"

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace args_fast {

using torch::stable::Tensor;

const Kernels& kernels();  // the best that the processor has

std::tuple<Tensor, Tensor> topk_logprobs(const Tensor& logits, int64_t k);

Tensor branch_attention(
    const Tensor& q, const Tensor& tail_k, const Tensor& tail_v, const Tensor& k_pages,
    const Tensor& v_pages, const Tensor& page_table, const Tensor& prefix_lengths,
    const Tensor& tail_mask, double scale, int64_t sliding_window, double softcap,
    std::optional<Tensor> sinks);

int64_t hold_layers(std::vector<Tensor> weights, std::vector<Tensor> low_rank);
void release_layers(int64_t number);

void decoder_layers(
    const Tensor& hidden, int64_t layers, const Tensor& tail_k, const Tensor& tail_v,
    const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
    const Tensor& prefix_lengths, std::optional<Tensor> tail_mask, std::optional<Tensor> cos,
    std::optional<Tensor> sin, const std::vector<double>& scales,
    const std::vector<int64_t>& windows, Name norm, double eps, Name activation, bool pre_norm,
    std::optional<Tensor> final_norm, std::optional<Tensor> final_norm_bias,
    const std::vector<Tensor>& adapted);

Tensor linear(
    const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> scale);

std::tuple<Tensor, Tensor, Tensor> select(
    const Tensor& hidden, const Tensor& head_weight, std::optional<Tensor> head_bias,
    const Tensor& logprobs, const Tensor& w, const Tensor& temperature, const Tensor& noise);

void commit(
    const Tensor& tail_k, const Tensor& tail_v, const Tensor& branch, const Tensor& k_pages,
    const Tensor& v_pages, const Tensor& page_table, const Tensor& lengths);

void record(
    const Tensor& ids, const Tensor& logprobs, const Tensor& branch, const Tensor& reward,
    const Tensor& score, const Tensor& noise, const Tensor& step_index, const Tensor& token,
    const Tensor& tokens, const Tensor& stats, const Tensor& draws);

}  // namespace args_fast
