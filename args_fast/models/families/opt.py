"""LayerNorm before or after, learned positions, an MLP, biases: OPT."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from args_fast.models.attention import AttentionOptions
from args_fast.models.families.base import (
    EVERY_ROW,
    Layers,
    activation_of,
    common,
    expect,
    expect_linear,
    in_order,
    is_class,
    parts_of,
    product,
)

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
NORMS = ("self_attn_layer_norm", "final_layer_norm")
OPTIONAL = ("final_layer_norm", "project_in", "project_out")


def layers(base: Any, options: Sequence[AttentionOptions]) -> Layers | None:
    """The layers of an OPT; None for another model."""
    if not is_class(base, "opt", "OPTModel"):
        return None
    decoder = base.decoder
    norms = _check(base)

    def embed(ids: Tensor, positions: Callable[[], Tensor]) -> Tensor:
        tokens = decoder.embed_tokens(ids)
        if decoder.project_in is not None:
            tokens = product(decoder.project_in, tokens)
        return tokens + decoder.embed_positions(None, 0, position_ids=positions())

    places = decoder.embed_positions
    tables = (decoder.embed_tokens, places, places.offset) if decoder.project_in is None else None
    return Layers(
        modules=list(decoder.layers.modules()),
        weights=lambda: in_order([_weights(layer) for layer in decoder.layers]),
        matrices=[
            {name: (module, EVERY_ROW) for name, module in _linears(layer).items()}
            for layer in decoder.layers
        ],
        scales=[  # the queries are scaled before their attention is asked
            asked.scale * layer.self_attn.scaling
            for asked, layer in zip(options, decoder.layers, strict=True)
        ],
        windows=[asked.sliding_window for asked in options],
        norm="layer",
        eps=common([norm.eps for norm in norms], "epsilons"),
        activation=common([activation_of(x.activation_fn) for x in decoder.layers], "functions"),
        pre_norm=common([layer.do_layer_norm_before for layer in decoder.layers], "orders"),
        final_norm=decoder.final_layer_norm,
        embed=embed,
        tables=tables,
        rotary=None,
        project=decoder.project_out,
        called=[decoder.embed_tokens, decoder.embed_positions],
    )


def _check(base: Any) -> list[Any]:
    """The norms of a model that is exactly as expected."""
    decoder = base.decoder
    parts = [part for part in OPTIONAL if getattr(decoder, part) is not None]
    expect(base, ("opt", "OPTModel"), ("decoder",))
    expect(decoder, ("opt", "OPTDecoder"), ("embed_tokens", "embed_positions", "layers", *parts))
    expect(decoder.embed_tokens, nn.Embedding)
    expect(decoder.embed_positions, ("opt", "OPTLearnedPositionalEmbedding"))
    for part in parts:
        if part == "final_layer_norm":
            expect(decoder.final_layer_norm, nn.LayerNorm)
        else:
            expect_linear(getattr(decoder, part))
    norms = [decoder.final_layer_norm] if "final_layer_norm" in parts else []
    for layer in decoder.layers:
        expect(
            layer,
            ("opt", "OPTDecoderLayer"),
            ("self_attn", "activation_fn", "fc1", "fc2", *NORMS),
        )
        expect(layer.self_attn, ("opt", "OPTAttention"), PROJECTIONS)
        for linear in (*(getattr(layer.self_attn, p) for p in PROJECTIONS), layer.fc1, layer.fc2):
            expect_linear(linear)
        for part in NORMS:
            expect(getattr(layer, part), nn.LayerNorm)
            norms.append(getattr(layer, part))
    return norms


def _weights(layer: Any) -> dict[str, Tensor | None]:
    parts = {
        **parts_of("norm1", layer.self_attn_layer_norm),
        **parts_of("norm2", layer.final_layer_norm),
    }
    for name, module in _linears(layer).items():
        parts |= parts_of(name, module)
    return parts


def _linears(layer: Any) -> dict[str, nn.Module]:
    attention = layer.self_attn
    return {
        "q": attention.q_proj,
        "k": attention.k_proj,
        "v": attention.v_proj,
        "o": attention.out_proj,
        "up": layer.fc1,
        "down": layer.fc2,
    }
