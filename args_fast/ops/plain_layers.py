"""The attention of a tail and whole decoder layers over it, in plain torch; see ``plain``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from args_fast.ops.schemas import LAYER_WEIGHTS


def branch_attention(
    q: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    tail_mask: Tensor,
    scale: float,
    sliding_window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of a tail of N rows to one shared prefix and to their ancestors in the tail.

    q [B, N, Hq, D]; tail_k, tail_v [B, N, Hkv, D]; k_pages, v_pages [pages, page_size, Hkv, D];
    page_table [B, P] i32: token j of sequence b is row j % page_size of page page_table[b, j //
    page_size]; prefix_lengths [B] i32, 0 allowed; tail_mask [N, N] bool, row i sees row j, the
    diagonal set. A row's position is its sequence's prefix length plus its number of ancestors.
    sliding_window: a row at position p sees positions above p - sliding_window (0: all). softcap c:
    scores become c * tanh(score / c) (0: none). sinks [Hq]: one more logit per head in the
    softmax's denominator. Rows of a page at or past the prefix length have no influence, whatever
    they hold.

    Returns [B, N, Hq, D] in q's dtype.
    """
    B, N, Hq, D = q.shape
    page_size, Hkv = k_pages.shape[1:3]
    G = Hq // Hkv
    P = page_table.shape[1]
    T = P * page_size

    def rows(pages: Tensor) -> Tensor:  # [B, Hkv, T, D]
        gathered = pages.index_select(0, page_table.flatten()).view(B, T, Hkv, D)
        return gathered.transpose(1, 2).float()

    key_position = torch.arange(T, device=q.device)
    stored = key_position < prefix_lengths[:, None]  # [B, T]
    prefix_k = rows(k_pages)
    prefix_v = rows(v_pages).masked_fill_(~stored[:, None, :, None], 0.0)  # a copy: rows gathers
    grouped = q.reshape(B, N, Hkv, G, D).permute(0, 2, 1, 3, 4).reshape(B, Hkv, N * G, D).float()

    depth = tail_mask.sum(1) - 1  # [N] ancestors of each row
    position = prefix_lengths[:, None] + depth  # [B, N]
    sees_prefix = stored[:, None, :].expand(B, N, T)
    sees_tail = tail_mask
    if sliding_window:
        sees_prefix = sees_prefix & (position[:, :, None] - key_position < sliding_window)
        sees_tail = sees_tail & (depth[:, None] - depth < sliding_window)
    sees = torch.cat([sees_prefix, sees_tail.expand(B, N, N)], dim=2)

    to_tail = tail_k.transpose(1, 2).transpose(2, 3).float()
    scores = torch.cat([grouped @ prefix_k.transpose(2, 3), grouped @ to_tail], dim=3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(B, Hkv, N, G, T + N).masked_fill(~sees[:, None, :, None, :], -torch.inf)
    if sinks is not None:
        column = sinks.float().view(1, Hkv, 1, G, 1).expand(B, Hkv, N, G, 1)
        scores = torch.cat([scores, column], dim=4)
    weights = torch.softmax(scores, dim=4)[..., : T + N].reshape(B, Hkv, N * G, T + N)
    out = weights[..., :T] @ prefix_v + weights[..., T:] @ tail_v.transpose(1, 2).float()
    return out.view(B, Hkv, N, G, D).permute(0, 2, 1, 3, 4).reshape(B, N, Hq, D).to(q.dtype)


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
    tail_mask: Tensor,
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
) -> None:
    """All decoder layers over the rows of a tail, in place.

    hidden [B, N, H] f32: the rows before the first layer, and afterwards those behind the last one,
    or behind the final norm where there is one. weights: for each layer the tensors that
    LAYER_WEIGHTS names, in its order; matrices are [out, in], and a tensor without elements stands
    for one that the layer does not have. tail_k, tail_v [L, B, N, Hkv, D] are written; k_pages,
    v_pages [L, pages, page_size, Hkv, D]; page_table, prefix_lengths and tail_mask as in
    ``branch_attention``. cos, sin [B, N, R] f32, R <= D even: each head's first R elements are
    rotated, half against half. scales, windows [L]: of each layer's attention. norm: "rms" or
    "layer"; activation: a key of ACTIVATIONS. pre_norm: norms stand before the attention and the
    MLP, else after the residual sum of each. A layer without a gate has an MLP of ``up`` and
    ``down`` alone.

    Everything but the stored keys and values is computed in float32.
    """
    normed = partial(_normed, norm, eps)
    act = ACTIVATIONS[activation]
    count = len(LAYER_WEIGHTS)
    for index, (scale, window) in enumerate(zip(scales, windows, strict=True)):
        tensors = weights[index * count : (index + 1) * count]
        layer = {
            name: weight.float() if weight.numel() else None
            for name, weight in zip(LAYER_WEIGHTS, tensors, strict=True)
        }
        x = normed(hidden, layer["norm1"], layer["norm1_bias"]) if pre_norm else hidden
        q, k, v = (_heads(layer, name, x, tail_k.shape[-1], normed) for name in "qkv")
        tail_k[index] = _rotated(k, cos, sin)
        tail_v[index] = v
        mixed = branch_attention(
            _rotated(q, cos, sin),
            tail_k[index],
            tail_v[index],
            k_pages[index],
            v_pages[index],
            page_table,
            prefix_lengths,
            tail_mask,
            scale,
            window,
        )
        hidden += _linear(layer, "o", mixed.flatten(2))
        if not pre_norm:
            hidden.copy_(normed(hidden, layer["norm1"], layer["norm1_bias"]))
        x = normed(hidden, layer["norm2"], layer["norm2_bias"]) if pre_norm else hidden
        up = _linear(layer, "up", x)
        inner = act(up) if layer["gate"] is None else act(_linear(layer, "gate", x)) * up
        hidden += _linear(layer, "down", inner)
        if not pre_norm:
            hidden.copy_(normed(hidden, layer["norm2"], layer["norm2_bias"]))
    if final_norm is not None:
        bias = None if final_norm_bias is None else final_norm_bias.float()
        hidden.copy_(normed(hidden, final_norm.float(), bias))


Layer = dict[str, Tensor | None]


def _normed(kind: str, eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    size = x.shape[-1:]
    if kind == "layer":
        return F.layer_norm(x, size, weight, bias, eps)
    x = F.rms_norm(x, size, weight, eps)
    return x if bias is None else x + bias


def _linear(layer: Layer, name: str, x: Tensor) -> Tensor:
    weight = layer[name]
    assert weight is not None
    return F.linear(x, weight, layer[f"{name}_bias"])


def _heads(
    layer: Layer, name: str, x: Tensor, D: int, normed: Callable[[Tensor, Any, Any], Tensor]
) -> Tensor:
    """[B, N, heads, D], each head with its own norm where the layer has one."""
    heads = _linear(layer, name, x).unflatten(-1, (-1, D))
    weight = layer.get(f"{name}_norm")
    return heads if weight is None else normed(heads, weight, None)


def _rotated(heads: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    if cos is None or sin is None:
        return heads
    turned, rest = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
    a, b = turned.chunk(2, dim=-1)
    turned = turned * cos[:, :, None] + torch.cat([-b, a], dim=-1) * sin[:, :, None]
    return torch.cat([turned, rest], dim=-1)
