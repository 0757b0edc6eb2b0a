"""RMSNorm, rotary positions, grouped heads with or without norms of their own, a gated MLP: llama,
mistral, qwen2, qwen3."""

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
)

# Model type -> the beginning of its classes' names.
PREFIXES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def layers(base: Any, options: Sequence[AttentionOptions]) -> Layers | None:
    """The layers of a llama, mistral, qwen2 or qwen3; None for another model."""
    found = (name for name, prefix in PREFIXES.items() if is_class(base, name, f"{prefix}Model"))
    name = next(found, None)
    if name is None:
        return None
    prefix = PREFIXES[name]
    head_norms = ("q_norm", "k_norm") if name == "qwen3" else ()
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    gates = ("gate_proj", "up_proj", "down_proj")
    norm_kind = name, f"{prefix}RMSNorm"
    expect(base, (name, f"{prefix}Model"), ("embed_tokens", "layers", "norm", "rotary_emb"))
    expect(base.embed_tokens, nn.Embedding)
    expect(base.rotary_emb, (name, f"{prefix}RotaryEmbedding"))
    norms = [base.norm]
    for layer in base.layers:
        halves = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
        expect(layer, (name, f"{prefix}DecoderLayer"), halves)
        expect(layer.self_attn, (name, f"{prefix}Attention"), (*projections, *head_norms))
        expect(layer.mlp, (name, f"{prefix}MLP"), (*gates, "act_fn"))
        for part in projections:
            expect(getattr(layer.self_attn, part), nn.Linear)
        for part in gates:
            expect(getattr(layer.mlp, part), nn.Linear)
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(layer.self_attn, p) for p in head_norms]
    for norm in norms:
        expect(norm, norm_kind)

    def weights() -> list[Tensor]:
        return in_order([_weights(layer, head_norms) for layer in base.layers])

    return Layers(
        parameters=list(base.layers.parameters()),
        weights=weights,
        scales=[at.scale for at in options],
        windows=[at.sliding_window for at in options],
        norm="rms",
        eps=common([norm.variance_epsilon for norm in norms], "epsilons"),
        activation=common(
            [activation_of(layer.mlp.act_fn) for layer in base.layers], "activations"
        ),
        pre_norm=True,
        final_norm=base.norm,
        embed=lambda ids, positions: base.embed_tokens(ids),
        rotary=base.rotary_emb,
        project=None,
        called=[base.embed_tokens, base.rotary_emb],
    )


def _weights(layer: Any, head_norms: Sequence[str]) -> dict[str, Tensor | None]:
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "norm1": layer.input_layernorm.weight,
        "norm2": layer.post_attention_layernorm.weight,
        **{name: getattr(attention, name).weight for name in head_norms},
        **parts_of("q", attention.q_proj),
        **parts_of("k", attention.k_proj),
        **parts_of("v", attention.v_proj),
        **parts_of("o", attention.o_proj),
        **parts_of("gate", mlp.gate_proj),
        **parts_of("up", mlp.up_proj),
        **parts_of("down", mlp.down_proj),
    }
