"""LayerNorm before or after, learned positions, an MLP, biases: OPT."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from args_fast.models.attention import AttentionOptions
from args_fast.models.families.base import (
    Layers,
    activation_of,
    common,
    expect,
    in_order,
    is_class,
    parts_of,
    product,
)


def layers(base: Any, options: Sequence[AttentionOptions]) -> Layers | None:
    """The layers of an OPT; None for another model."""
    if not is_class(base, "opt", "OPTModel"):
        return None
    decoder = base.decoder
    optional = ("final_layer_norm", "project_in", "project_out")
    has = [part for part in optional if getattr(decoder, part) is not None]
    expect(base, ("opt", "OPTModel"), ("decoder",))
    expect(decoder, ("opt", "OPTDecoder"), ("embed_tokens", "embed_positions", "layers", *has))
    expect(decoder.embed_tokens, nn.Embedding)
    expect(decoder.embed_positions, ("opt", "OPTLearnedPositionalEmbedding"))
    for part in has:
        expect(getattr(decoder, part), nn.LayerNorm if part == "final_layer_norm" else nn.Linear)
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    norms = [decoder.final_layer_norm] if decoder.final_layer_norm is not None else []
    for layer in decoder.layers:
        parts = ("self_attn", "activation_fn", "self_attn_layer_norm", "fc1", "fc2")
        expect(layer, ("opt", "OPTDecoderLayer"), (*parts, "final_layer_norm"))
        expect(layer.self_attn, ("opt", "OPTAttention"), projections)
        for part in (*(getattr(layer.self_attn, p) for p in projections), layer.fc1, layer.fc2):
            expect(part, nn.Linear)
        for norm in (layer.self_attn_layer_norm, layer.final_layer_norm):
            expect(norm, nn.LayerNorm)
            norms.append(norm)

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        tokens = decoder.embed_tokens(ids)
        if decoder.project_in is not None:
            tokens = product(decoder.project_in, tokens)
        return tokens + decoder.embed_positions(None, 0, position_ids=positions)

    return Layers(
        parameters=list(decoder.layers.parameters()),
        weights=lambda: in_order([_weights(layer) for layer in decoder.layers]),
        scales=[  # the queries are scaled before their attention is asked
            at.scale * layer.self_attn.scaling
            for at, layer in zip(options, decoder.layers, strict=True)
        ],
        windows=[at.sliding_window for at in options],
        norm="layer",
        eps=common([norm.eps for norm in norms], "epsilons"),
        activation=common([activation_of(x.activation_fn) for x in decoder.layers], "activations"),
        pre_norm=common([layer.do_layer_norm_before for layer in decoder.layers], "orders"),
        final_norm=decoder.final_layer_norm,
        embed=embed,
        rotary=None,
        project=decoder.project_out,
        called=[decoder.embed_tokens, decoder.embed_positions],
    )


def _weights(layer: Any) -> dict[str, Tensor | None]:
    attention = layer.self_attn
    return {
        **parts_of("norm1", layer.self_attn_layer_norm),
        **parts_of("norm2", layer.final_layer_norm),
        **parts_of("q", attention.q_proj),
        **parts_of("k", attention.k_proj),
        **parts_of("v", attention.v_proj),
        **parts_of("o", attention.out_proj),
        **parts_of("up", layer.fc1),
        **parts_of("down", layer.fc2),
    }
