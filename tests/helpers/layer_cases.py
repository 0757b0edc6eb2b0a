"""Decoder layers with random weights over random prefixes, for every implementation of the op."""

import torch
from hypothesis import strategies as st
from op_cases import DTYPES, attention_case, chain, random, siblings, tree

from args_fast.models.compact import OF_16_BITS, quantized
from args_fast.ops.schemas import LAYER_WEIGHTS, MATRICES, TERM

ACTIVATIONS = ["silu", "relu", "gelu", "gelu_tanh"]

# Shapes of layers that models have, as options of ``layers_case``.
LLAMA = {"rotary": 8}
OPT = {"norm": "layer", "gated": False, "biases": True, "activation": "relu"}
SHAPES = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"biases": True},
    "qwen3": LLAMA | {"head_norms": True},
    "mistral": LLAMA | {"windows": [7, 0]},
    "partial": {"rotary": 4},
    "opt": OPT,
    "opt-350m": OPT | {"pre_norm": False, "final": False},
    "gpt2": OPT | {"columns": True, "activation": "gelu_tanh"},
}


def layer_weights(
    H, F, Hq, Hkv, D, *, gated, biases, norms, head_norms, columns, stored, dtype, seed
):
    """One layer's tensors, in order; matrices so scaled that values stay of one size."""
    shapes = {
        "q": (Hq * D, H),
        "k": (Hkv * D, H),
        "v": (Hkv * D, H),
        "o": (H, Hq * D),
        "gate": (F, H) if gated else (0,),
        "up": (F, H),
        "down": (H, F),
    }
    found = {}
    for i, name in enumerate(LAYER_WEIGHTS):
        matrix, kind = name.removesuffix("_bias"), seed + 31 * i
        if name in shapes:
            weight = random(*shapes[name], seed=kind) / max(1, shapes[name][-1]) ** 0.5
            weight = weight.T.contiguous().T if columns and weight.dim() == 2 else weight
        elif name.startswith("norm"):
            weight = random(H, seed=kind) if norms else torch.empty(0)
        elif name.endswith("_scale"):
            weight = torch.empty(0)
        elif name.endswith("_norm"):
            weight = random(D, seed=kind) if head_norms else torch.empty(0)
        else:
            weight = random(shapes[matrix][0], seed=kind) if biases else torch.empty(0)
        found[name] = weight.to(dtype)
    for name in MATRICES if stored else ():
        if found[name].numel() and stored == torch.int8:
            found[name], found[f"{name}_scale"] = quantized(found[name])
        elif found[name].numel():
            found[name] = found[name].to(stored)
    return [found[name] for name in LAYER_WEIGHTS]


def layers_case(
    lengths,
    N,
    *,
    L=2,
    H=24,
    F=40,
    Hq=4,
    Hkv=2,
    D=8,
    rotary=None,
    windows=None,
    norm="rms",
    activation="silu",
    pre_norm=True,
    final=True,
    gated=True,
    biases=False,
    norms=True,
    head_norms=False,
    columns=False,
    stored=None,
    ranks=None,
    joined=False,
    mask=None,
    page_size=16,
    dtype=torch.float32,
    seed=0,
):
    """The arguments of ops.decoder_layers. ``stored``: the type of matrices, where it is not that
    of the rest. ``joined``: as many adapted rows after the others, over other keys and values."""
    options = {
        "gated": gated,
        "biases": biases,
        "norms": norms,
        "head_norms": head_norms,
        "columns": columns,
        "stored": stored,
        "dtype": dtype,
    }
    weights, per_layer = [], []
    for layer in range(L):
        weights += layer_weights(H, F, Hq, Hkv, D, **options, seed=seed + 1000 * layer)
        per_layer.append(
            attention_case(lengths, N, Hq, Hkv, D, page_size=page_size, dtype=dtype, seed=seed)
        )
    _, _, _, _, _, table, prefix_lengths, _, scale = per_layer[0]
    B = len(lengths)
    angles = random(B, N, max(rotary or 0, 1), seed=seed + 7)
    use = rotary is not None
    adapted = []
    if joined:
        adapted = [torch.zeros(L, B, N, Hkv, D, dtype=dtype) for _ in range(2)]
        # In memory of other strides; what no sequence owns stays NaN.
        adapted += [
            torch.stack([c[i].flip(3) for c in per_layer], 1).transpose(0, 1) for i in (4, 3)
        ]
    return [
        random((1 + joined) * B, N, H, seed=seed + 5),
        weights,
        *(torch.zeros(L, B, N, Hkv, D, dtype=dtype) for _ in range(2)),
        *(torch.stack([case[i] for case in per_layer]) for i in (3, 4)),
        table,
        prefix_lengths,
        siblings(N) if mask is None else mask,
        angles.cos() if use else None,
        angles.sin() if use else None,
        [scale * (layer + 1) ** -0.5 for layer in range(L)],
        windows or [0] * L,
        norm,
        1e-5,
        activation,
        pre_norm,
        random(H, seed=seed + 8, dtype=dtype) if final else None,
        random(H, seed=seed + 9, dtype=dtype) if final and norm == "layer" else None,
        [] if ranks is None else low_rank(weights, ranks, dtype, seed),
        adapted,
    ]


def apart(case):
    """The two passes that a joined one stands for: without the adapter's terms, and with them."""
    *_, terms, readers = case
    plain, adapted = list(case), list(case)
    plain[0], adapted[0] = (half.contiguous() for half in case[0].chunk(2))
    plain[-2:], adapted[-2:] = ([], []), (terms, [])
    adapted[2:6] = readers
    return plain, adapted


def low_rank(weights, ranks, dtype, seed):
    """The terms of all matrices of all layers, of ranks in turn; a rank of 0 is a bias alone."""
    terms, count = [], 0
    for layer in range(len(weights) // len(LAYER_WEIGHTS)):
        of_layer = weights[layer * len(LAYER_WEIGHTS) :][: len(LAYER_WEIGHTS)]
        for name in MATRICES:
            weight = dict(zip(LAYER_WEIGHTS, of_layer, strict=True))[name]
            rank, count = ranks[count % len(ranks)], count + 1
            if not weight.numel() or rank is None:
                terms += [torch.empty(0)] * len(TERM)
                continue
            N, K = weight.shape
            a = random(rank, K, seed=seed + count) / max(1, rank * K) ** 0.5
            bias = random(N, seed=seed + count + 7) if rank % 2 == 0 else torch.empty(0)
            terms += [a.to(dtype), random(rank, N, seed=seed + count + 3), bias]
    return terms


STORED = [{}, {"columns": True}, {"stored": torch.int8}]
STORED += [{"stored": kind} for kind in OF_16_BITS]


@st.composite
def layers_cases(draw, joined=True, stored=True):
    """``stored``: matrices of another type than the rest, too."""
    N, Hkv, D = (
        draw(st.sampled_from([1, 2, 5, 11])),
        draw(st.integers(1, 3)),
        2 * draw(st.sampled_from([1, 3, 4, 8, 17, 32])),
    )
    norm = draw(st.sampled_from(["rms", "layer"]))
    seed = draw(st.integers(0, 999))
    more, dtype = (
        draw(st.sampled_from(STORED if stored else STORED[:2])),
        draw(st.sampled_from(DTYPES)),
    )
    return layers_case(
        draw(st.lists(st.sampled_from([0, 1, 15, 17, 90, 300]), min_size=1, max_size=3)),
        N,
        L=draw(st.integers(1, 3)),
        H=draw(st.sampled_from([1, 5, 16, 33, 64, 100])),
        F=draw(st.sampled_from([1, 7, 32, 65, 130])),
        Hq=Hkv * draw(st.integers(1, 3)),
        Hkv=Hkv,
        D=D,
        rotary=draw(st.sampled_from([None, D, max(2, D // 4 * 2)])),
        windows=None,
        norm=norm,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        pre_norm=draw(st.booleans()),
        final=draw(st.booleans()),
        gated=draw(st.booleans()),
        biases=draw(st.booleans()),
        norms=draw(st.booleans()),
        # A layer norm of two elements is their order: the smallest difference turns it around.
        head_norms=draw(st.booleans()) and (norm == "rms" or D > 2),
        **more,
        joined=joined and draw(st.booleans()),
        ranks=draw(st.none() | st.lists(st.sampled_from([None, 0, 1, 5, 16, 40]), min_size=1)),
        mask=draw(st.sampled_from([siblings(N), chain(N), tree(N, seed)])),
        page_size=draw(st.sampled_from([1, 16, 33])),
        dtype=torch.float32 if more.get("stored") in OF_16_BITS else dtype,
        seed=seed,
    )
