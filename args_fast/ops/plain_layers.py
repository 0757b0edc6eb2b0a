"""Whole decoder layers over the rows of a tail, in plain torch: what the op means.

Like ``args_fast.ops.plain``, of which it is the longest part.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from args_fast.ops.plain import branch_attention
from args_fast.ops.schemas import LAYER_WEIGHTS, TERM, TERM_NAMES

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def decoder_layers(
    hidden: Tensor,
    weights: list[Tensor],
    tail_k: Tensor,
    tail_v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    tail_mask: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    scales: list[float],
    windows: list[int],
    norm: str,
    eps: float,
    activation: str,
    pre_norm: bool,
    final_norm: Tensor | None = None,
    final_norm_bias: Tensor | None = None,
    low_rank: Sequence[Tensor] = (),
    adapted: Sequence[Tensor] = (),
) -> None:
    """All decoder layers over the rows of a tail, in place.

    hidden [B, N, H] f32: the rows before the first layer, and afterwards those after the last one,
    or after the final norm where there is one. weights: for each layer the tensors that
    LAYER_WEIGHTS names, in its order; matrices are [out, in], and a tensor without elements stands
    for one that the layer does not have; a matrix of int8 is multiplied with its rows' scales.
    tail_k, tail_v [L, B, N, Hkv, D] are written; k_pages, v_pages
    [L, pages, page_size, Hkv, D]; page_table, prefix_lengths and tail_mask as in
    ``branch_attention``; without a mask rows are the next ones of a prompt, and see those before
    them. cos, sin [B, N, R] f32, R <= D even: each head's first R elements are rotated, half
    against half. scales, windows [L]: of each layer's attention. norm: "rms" or
    "layer"; activation: a key of ACTIVATIONS. pre_norm: norms stand before the attention and the
    MLP, else after their residual sums. A layer without a gate has an MLP of ``up`` and
    ``down`` alone. low_rank: for each layer and each of MATRICES the tensors of TERM, or nothing.
    adapted: nothing; or tail_k, tail_v, k_pages and v_pages of an adapted model's rows, which
    follow the others in hidden [2 B, N, H], stand at the same positions, and alone get the terms.

    Everything but the stored keys and values is computed in float32.
    """
    if tail_mask is None:
        N = hidden.shape[1]
        tail_mask = torch.ones(N, N, dtype=torch.bool, device=hidden.device).tril()
    normed = partial(_normed, norm, eps)
    act = ACTIVATIONS[activation]
    count = len(LAYER_WEIGHTS)
    readers = [[tail_k, tail_v, k_pages, v_pages], *([adapted] if adapted else [])]
    cos, sin = (None if x is None else x.repeat(len(readers), 1, 1) for x in (cos, sin))
    linear = partial(_linear, len(hidden) - tail_k.shape[1])
    D = tail_k.shape[-1]
    for index, (scale, window) in enumerate(zip(scales, windows, strict=True)):
        tensors = weights[index * count : (index + 1) * count]
        layer = {
            name: weight.float() if weight.numel() else None
            for name, weight in zip(LAYER_WEIGHTS, tensors, strict=True)
        }
        layer |= _terms_of_layer(low_rank, index)
        x = normed(hidden, layer["norm1"], layer["norm1_bias"]) if pre_norm else hidden
        q, k, v = (linear(layer, name, x).unflatten(-1, (-1, D)) for name in "qkv")
        q, k = (_placed(layer, name, x, normed, cos, sin) for name, x in (("q", q), ("k", k)))
        places = page_table, prefix_lengths, tail_mask
        parts = zip(readers, *(x.chunk(len(readers)) for x in (q, k, v)), strict=True)
        mixed = [_attended(index, *part, *places, scale, window) for part in parts]
        hidden += linear(layer, "o", torch.cat(mixed).flatten(2))
        if not pre_norm:
            hidden.copy_(normed(hidden, layer["norm1"], layer["norm1_bias"]))
        x = normed(hidden, layer["norm2"], layer["norm2_bias"]) if pre_norm else hidden
        up = linear(layer, "up", x)
        inner = act(up) if layer["gate"] is None else act(linear(layer, "gate", x)) * up
        hidden += linear(layer, "down", inner)
        if not pre_norm:
            hidden.copy_(normed(hidden, layer["norm2"], layer["norm2_bias"]))
    if final_norm is not None:
        weight = final_norm.float() if final_norm.numel() else None
        bias = None if final_norm_bias is None else final_norm_bias.float()
        hidden.copy_(normed(hidden, weight, bias))


Layer = dict[str, Tensor | None]


def _normed(kind: str, eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    size = x.shape[-1:]
    if kind == "layer":
        return F.layer_norm(x, size, weight, bias, eps)
    x = F.rms_norm(x, size, weight, eps)
    return x if bias is None else x + bias


def _terms_of_layer(low_rank: Sequence[Tensor], index: int) -> "Layer":
    tensors = low_rank[index * len(TERM_NAMES) : (index + 1) * len(TERM_NAMES)]
    terms = zip(TERM_NAMES, tensors, strict=False)  # or there are none
    return {name: x.float() if x.numel() else None for name, x in terms}


def _linear(first_adapted: int, layer: Layer, name: str, x: Tensor) -> Tensor:
    """The rows from ``first_adapted`` on get the layer's terms."""
    weight, scale = layer[name], layer[f"{name}_scale"]
    assert weight is not None
    if scale is not None:
        weight = weight * scale[:, None]
    out = F.linear(x, weight, layer[f"{name}_bias"])
    a, b, bias = (layer.get(f"{name}_term_{part}") for part in TERM)
    if a is not None and b is not None:
        out[first_adapted:] += F.linear(x[first_adapted:], a) @ b
    if bias is not None:
        out[first_adapted:] += bias
    return out


def _attended(
    index: int, reader: Sequence[Tensor], q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> Tensor:
    """The attention of a reader's rows in layer ``index``, with their keys and values stored."""
    tail_k, tail_v, k_pages, v_pages = (tensor[index] for tensor in reader)
    tail_k.copy_(k)
    tail_v.copy_(v)
    return branch_attention(q, tail_k, tail_v, k_pages, v_pages, *others)


def _placed(
    layer: Layer,
    name: str,
    heads: Tensor,
    normed: Callable[[Tensor, Any, Any], Tensor],
    cos: Tensor | None,
    sin: Tensor | None,
) -> Tensor:
    """Heads [B, N, heads, D] with their norm, where the layer has one, and turned."""
    weight = layer.get(f"{name}_norm")
    heads = heads if weight is None else normed(heads, weight, None)
    if cos is None or sin is None:
        return heads
    turned, straight = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
    a, b = turned.chunk(2, dim=-1)
    turned = turned * cos[:, :, None] + torch.cat([-b, a], dim=-1) * sin[:, :, None]
    return torch.cat([turned, straight], dim=-1)
