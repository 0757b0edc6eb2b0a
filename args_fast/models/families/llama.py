"""RMSNorm, rotary positions, grouped heads with or without norms of their own, a gated MLP: llama,
mistral, qwen2, qwen3."""

from collections.abc import Sequence
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
)

NORMS = ("input_layernorm", "post_attention_layernorm")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
# Model type -> the beginning of its classes' names.
PREFIXES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def layers(base: Any, options: Sequence[AttentionOptions]) -> Layers | None:
    """The layers of a llama, mistral, qwen2 or qwen3; None for another model."""
    names = (name for name, prefix in PREFIXES.items() if is_class(base, name, f"{prefix}Model"))
    name = next(names, None)
    if name is None:
        return None
    head_norms = ("q_norm", "k_norm") if name == "qwen3" else ()
    norms = _check(base, name, head_norms)
    return Layers(
        modules=list(base.layers.modules()),
        weights=lambda: in_order([_weights(layer, head_norms) for layer in base.layers]),
        matrices=[
            {name: (module, EVERY_ROW) for name, module in _linears(layer).items()}
            for layer in base.layers
        ],
        scales=[asked.scale for asked in options],
        windows=[asked.sliding_window for asked in options],
        norm="rms",
        eps=common([norm.variance_epsilon for norm in norms], "epsilons"),
        activation=common([activation_of(layer.mlp.act_fn) for layer in base.layers], "functions"),
        pre_norm=True,
        final_norm=base.norm,
        embed=lambda ids, positions: base.embed_tokens(ids),
        tables=(base.embed_tokens, None, 0),
        rotary=base.rotary_emb,
        project=None,
        called=[base.embed_tokens, base.rotary_emb],
    )


def _check(base: Any, name: str, head_norms: Sequence[str]) -> list[Any]:
    """The norms of a model that is exactly as expected."""
    prefix = PREFIXES[name]
    expect(base, (name, f"{prefix}Model"), ("embed_tokens", "layers", "norm", "rotary_emb"))
    expect(base.embed_tokens, nn.Embedding)
    expect(base.rotary_emb, (name, f"{prefix}RotaryEmbedding"))
    norms = [base.norm]
    for layer in base.layers:
        expect(layer, (name, f"{prefix}DecoderLayer"), ("self_attn", "mlp", *NORMS))
        expect(layer.self_attn, (name, f"{prefix}Attention"), (*PROJECTIONS, *head_norms))
        expect(layer.mlp, (name, f"{prefix}MLP"), (*GATED, "act_fn"))
        for part in PROJECTIONS:
            expect_linear(getattr(layer.self_attn, part))
        for part in GATED:
            expect_linear(getattr(layer.mlp, part))
        norms += [getattr(layer, part) for part in NORMS]
        norms += [getattr(layer.self_attn, part) for part in head_norms]
    for norm in norms:
        expect(norm, (name, f"{prefix}RMSNorm"))
    return norms


def _weights(layer: Any, head_norms: Sequence[str]) -> dict[str, Tensor | None]:
    parts = {
        "norm1": layer.input_layernorm.weight,
        "norm2": layer.post_attention_layernorm.weight,
        **{name: getattr(layer.self_attn, name).weight for name in head_norms},
    }
    for name, module in _linears(layer).items():
        parts |= parts_of(name, module)
    return parts


def _linears(layer: Any) -> dict[str, nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "q": attention.q_proj,
        "k": attention.k_proj,
        "v": attention.v_proj,
        "o": attention.o_proj,
        "gate": mlp.gate_proj,
        "up": mlp.up_proj,
        "down": mlp.down_proj,
    }
