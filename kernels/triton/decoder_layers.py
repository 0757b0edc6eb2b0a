"""All decoder layers of a model over the rows of a tail: five launches a layer.

    _project    norm, q/k/v, head norms, rotary; k and v into the tail
    _attend     over pages and tail, with its merge
    _add        o, and the residual
    _feed       norm, gate and up, activation
    _add        down, and the residual

One more before the first layer (the embeddings of the tokens, and what the norm needs to know of
them), one for the final norm. ``args_fast.ops.plain_layers`` says what is computed. Between two
launches lie x in f32, and q, the attention's and the MLP's rows in the type of the weights, in
which the next product takes them.

A model whose norms come after the residual sums (OPT-350M) has the same five: x is stored before
its norm, and both who reads it and who adds to it norm it first.

An adapter's terms are added within the products, to the rows that are its own (``layer_terms``);
where the language model's rows are in the same pass, both attend in one launch.

Which program takes what depends on the model's sizes and the device, never on M or on the lengths;
so a row of a step has the same bits in any batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from args_fast.kernels.branch_attention import MAX_D
from args_fast.kernels.device import machine, too_old
from args_fast.kernels.layer_pass import Embedding, Layer, LayerPass, Norm, term_of
from args_fast.kernels.layer_products import ROWS

COUNTERS = 1 << 18  # tiles that may be merged in one launch: of thousands of rows
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
# Rows of a pass up to which the kernels are faster than a model's own modules, by compute
# capability; not known of others. (9, 0): on an H100, in bfloat16, passes of 1 to 16 rows were
# faster, of 20 and more slower (docs/performance.md, "On an H100"). A pass with as many adapted
# rows again counts once: its modules add an adapter's terms in kernels of their own.
FASTER_ROWS: dict[tuple[int, int], int] = {(9, 0): ROWS}
# Of a term, by bytes of an element: what it takes of registers and shared memory grows with it.
MOST_RANK = {2: 64, 4: 32}


def unsupported(layers: Sequence[Layer], head_size: int) -> str | None:
    """Why the kernels cannot take a model's layers, or None.

    Args:
        layers: each layer's tensors by name, as in ``decoder_layers``.
        head_size: D.
    """
    ranks = [len(a) for x in layers for name in MATRICES if (a := term_of(x, name)[0]) is not None]
    for layer in layers:
        matrices = [weight for name in MATRICES if (weight := layer[name]) is not None]
        own = (w for name, w in layer.items() if "_term_" not in name and "_scale" not in name)
        dtypes = {weight.dtype for weight in own if weight is not None}
        if len(dtypes) > 1 or not dtypes <= set(DTYPES):
            found = " and ".join(sorted(map(str, dtypes)))
            return f"it takes float32, bfloat16 or float16, not {found}"
        if any(1 not in weight.stride() for weight in matrices):
            return "it takes weights whose rows or columns are in one piece"
        for names in (("k", "v"), ("gate", "up")):
            if len({w.stride() for name in names if (w := layer[name]) is not None}) > 1:
                return f"it takes {', '.join(names)} with the same strides"
    most = MOST_RANK[matrices[0].itemsize]
    if max(ranks, default=0) > most:
        return f"it takes low-rank terms of rank up to {most}, not {max(ranks)}"
    if head_size > MAX_D:
        return f"it takes heads of up to {MAX_D} elements, not {head_size}"
    return too_old(matrices[0].device)


def faster_rows(device: torch.device) -> int:
    """Rows of a pass up to which the kernels are known to be faster than a model's own modules."""
    capability, _ = machine(device)
    return FASTER_ROWS.get(capability, 0)


def decoder_layers(
    hidden: Tensor,
    layers: Sequence[Layer],
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
    adapted: Sequence[Tensor] = (),
    *,
    counters: Tensor,
    embedding: Embedding | None = None,
) -> None:
    """See args_fast.ops.plain_layers.decoder_layers; hidden, cos, sin and tails are contiguous.

    hidden may be of the weights' type. With an embedding what is in it before is not looked at.
    layers: for each the tensors that LAYER_WEIGHTS names, and those of an adapter's terms
    (q_term_a, ...); None for what a layer does not have. adapted: see there.
    counters [COUNTERS] i32: zeros, and zeros again afterwards. Two calls that run at the same time
    (on two streams) must not share them. Raises ValueError for more rows than they suffice for.
    """
    rotary = None if cos is None or sin is None else (cos, sin)
    run = LayerPass(hidden, layers[0], tail_k, counters, norm, eps, rotary)
    mask = tail_mask.contiguous().view(torch.uint8)
    prefixes = page_table, prefix_lengths, mask
    before, between = run.stats
    none: Norm = (None, None)
    pending = none  # the norm that x still wants, where norms come after the sums
    if pre_norm or embedding is not None or run.x is not hidden:
        run.begin(hidden, embedding, before)
    for i, layer in enumerate(layers):
        norm1: Norm = (layer["norm1"], layer["norm1_bias"])
        norm2: Norm = (layer["norm2"], layer["norm2_bias"])
        # Norms after the sums: the first layer's x has none, and every other is normed by whoever
        # reads it.
        stats = before if pre_norm or i > 0 else None
        readers = [(tail_k[i], tail_v[i], k_pages[i], v_pages[i])]
        if adapted:
            readers.append((adapted[0][i], adapted[1][i], adapted[2][i], adapted[3][i]))
        tails = [tail for reader in readers for tail in reader[:2]]
        run.project(layer, norm1 if pre_norm else pending, stats, *tails)
        run.attend(readers, *prefixes, scales[i], windows[i])
        # Where norms come after the sums, what is added to is normed first.
        o = run.mixed, layer["o"], layer["o_bias"], run.of_o
        down = run.inner, layer["down"], layer["down_bias"], run.of_down
        of_o, of_down = term_of(layer, "o"), term_of(layer, "down")
        if pre_norm:
            run.add(*o, none, None, between, of_o)
            run.feed(layer, norm2, between, activation)
            run.add(*down, none, None, before, of_down)
        else:
            run.add(*o, pending, stats, between, of_o)
            run.feed(layer, norm1, between, activation)
            run.add(*down, norm1, between, before, of_down)
        pending = norm2
    if not pre_norm:
        run.norm(hidden if final_norm is None else run.x, before, *pending)
        if final_norm is not None:
            run.begin(run.x, None, before)
    if final_norm is not None:
        run.norm(hidden, before, final_norm if final_norm.numel() else None, final_norm_bias)
    elif pre_norm and run.x is not hidden:
        hidden.copy_(run.x)
