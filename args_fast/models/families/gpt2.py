"""LayerNorm, learned positions, an MLP, biases; weights that lie [in, out], and one for q, k and v:
GPT-2."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from args_fast.models.attention import AttentionOptions
from args_fast.models.families.base import (
    EVERY_ROW,
    Layers,
    activation_of,
    common,
    expect,
    in_order,
    is_class,
    parts_of,
)


def layers(base: Any, options: Sequence[AttentionOptions]) -> Layers | None:
    """The layers of a GPT-2; None for another model."""
    if not is_class(base, "gpt2", "GPT2Model"):
        return None
    norms = _check(base)
    return Layers(
        modules=list(base.h.modules()),
        weights=lambda: in_order([_weights(block) for block in base.h]),
        matrices=[_matrices(block) for block in base.h],
        scales=[asked.scale for asked in options],
        windows=[asked.sliding_window for asked in options],
        norm="layer",
        eps=common([norm.eps for norm in norms], "epsilons"),
        activation=common([activation_of(block.mlp.act) for block in base.h], "functions"),
        pre_norm=True,
        final_norm=base.ln_f,
        embed=lambda ids, positions: base.wte(ids) + base.wpe(positions()),
        tables=(base.wte, base.wpe, 0),
        rotary=None,
        project=None,
        called=[base.wte, base.wpe],
    )


def _check(base: Any) -> list[Any]:
    """The norms of a model that is exactly as expected."""
    expect(base, ("gpt2", "GPT2Model"), ("wte", "wpe", "drop", "h", "ln_f"))
    expect(base.wte, nn.Embedding)
    expect(base.wpe, nn.Embedding)
    expect(base.drop, nn.Dropout)
    norms = [base.ln_f]
    for block in base.h:
        expect(block, ("gpt2", "GPT2Block"), ("ln_1", "attn", "ln_2", "mlp"))
        parts = ("c_attn", "c_proj", "attn_dropout", "resid_dropout")
        expect(block.attn, ("gpt2", "GPT2Attention"), parts)
        expect(block.mlp, ("gpt2", "GPT2MLP"), ("c_fc", "c_proj", "act", "dropout"))
        for product in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            expect(product, Conv1D)
        norms += [block.ln_1, block.ln_2]
    for norm in norms:
        expect(norm, nn.LayerNorm)
    return norms


def _weights(block: Any) -> dict[str, Tensor | None]:
    def turned(name: str, module: Any) -> dict[str, Tensor | None]:
        return {name: module.weight.detach().T, f"{name}_bias": module.bias}

    parts = {
        **parts_of("norm1", block.ln_1),
        **parts_of("norm2", block.ln_2),
        **turned("o", block.attn.c_proj),
        **turned("up", block.mlp.c_fc),
        **turned("down", block.mlp.c_proj),
    }
    for name in "qkv":
        whole, columns = _matrices(block)[name]
        parts[name] = whole.weight.detach()[:, columns].T
        parts[f"{name}_bias"] = whole.bias.detach()[columns]
    return parts


def _matrices(block: Any) -> dict[str, tuple[Any, slice]]:
    whole = block.attn.c_attn
    size = whole.weight.shape[1] // 3
    return {
        **{n: (whole, slice(i * size, (i + 1) * size)) for i, n in enumerate("qkv")},
        "o": (block.attn.c_proj, EVERY_ROW),
        "up": (block.mlp.c_fc, EVERY_ROW),
        "down": (block.mlp.c_proj, EVERY_ROW),
    }
