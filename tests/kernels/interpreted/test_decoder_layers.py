"""Whole decoder layers in Triton, against the plain ones; and that a row's bits are its own."""

from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from layer_cases import ACTIVATIONS, LLAMA, OPT, SHAPES, apart, layers_case, layers_cases
from op_cases import DTYPES, NAN, bits, chain, random, siblings, tree

from args_fast.kernels import decoder_layers as module
from args_fast.kernels import layer_pass
from args_fast.ops import plain_layers
from args_fast.ops.decoder_layers import by_name

# Relative error of a result. In 16 bits what is multiplied is rounded, and the plain one does not.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
HIDDEN, WEIGHTS, TAIL_K, TAIL_V = range(4)
ADAPTED = -1  # whose first two are written, too
LOW_RANK = -2

# As options of ``layers_case``: terms of all matrices or of some, of several ranks, or a bias.
ADAPTERS = {
    "llama adapted": LLAMA | {"ranks": [8, 0, 3]},
    "qwen3 adapted": LLAMA | {"head_norms": True, "ranks": [30, None]},
    "opt adapted": OPT | {"ranks": [None, 5, 20]},
    "gpt2 adapted": SHAPES["gpt2"] | {"ranks": [4]},
    "llama joined": LLAMA | {"ranks": [8, 0, 3], "joined": True},
    "qwen3 joined": LLAMA | {"head_norms": True, "ranks": [32, None], "joined": True},
    "mistral joined": SHAPES["mistral"] | {"ranks": [None, None, 6, 17], "joined": True},
    "opt joined": OPT | {"ranks": [None, 0, 5], "joined": True},
    "opt-350m joined": SHAPES["opt-350m"] | {"ranks": [None, 5], "joined": True},
    "gpt2 joined": SHAPES["gpt2"] | {"ranks": [4], "joined": True},
    "no terms joined": LLAMA | {"joined": True},
}


def layers_in_triton(hidden, weights, *others, embedding=None):
    *others, low_rank, adapted = others
    counters = torch.zeros(module.COUNTERS, dtype=torch.int32)
    layers = by_name(weights, low_rank)
    assert module.unsupported(layers, others[0].shape[-1]) is None
    module.decoder_layers(hidden, layers, *others, adapted, counters=counters, embedding=embedding)
    assert not counters.any()  # as they were found


def run(function, case):
    """(hidden, tail_k, tail_v) afterwards, and the tail of adapted rows; the case stays as it
    was."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in case]
    copies[ADAPTED] = [x.clone() for x in case[ADAPTED]]
    function(*copies)
    return copies[HIDDEN], copies[TAIL_K], copies[TAIL_V], *copies[ADAPTED][:2]


def assert_layers(case):
    for got, wanted in zip(
        run(layers_in_triton, case), run(plain_layers.decoder_layers, case), strict=True
    ):
        error = (got.double() - wanted.double()).norm()
        assert error <= TOLERANCE[case[TAIL_K].dtype] * wanted.double().norm()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in (*SHAPES, "llama joined") for dtype in DTYPES[:2]),
        *((name, torch.float16) for name in ("qwen3", "opt", "llama joined")),
        *((name, torch.float32) for name in ADAPTERS if name != "llama joined"),
    ],
    ids=str,
)
def test_layers_of_models(name, dtype):
    assert_layers(layers_case([37, 0, 130], 5, dtype=dtype, **(SHAPES | ADAPTERS)[name]))


@pytest.mark.parametrize(
    ("mask", "windows"), [(chain(18), [9, 0]), (tree(18), None)], ids=["chain", "tree"]
)
def test_more_rows_than_a_tile_over_several_chunks(mask, windows, monkeypatch):
    cut = layer_pass.prefix_cut

    def short(*arguments):
        return cut(*arguments) | {"CHUNK": 64, "BLOCK_N": 32}

    monkeypatch.setattr(layer_pass, "prefix_cut", short)
    shape = LLAMA | {"windows": windows, "mask": mask}
    assert_layers(layers_case([130, 63], 18, H=40, F=70, **shape))
    assert_layers(layers_case([130, 63], 18, H=40, F=70, **shape, ranks=[3], joined=True))


@pytest.mark.parametrize(
    ("name", "splits"),
    [("qwen3", 2), ("opt-350m", 3), ("qwen3 adapted", 3), ("opt-350m joined", 2)],
)
def test_products_in_several_splits(name, splits, monkeypatch):
    monkeypatch.setattr(layer_pass, "divide", lambda tiles, blocks, *_: min(splits, blocks))
    shape = (SHAPES | ADAPTERS)[name]
    for dtype, size in ((torch.float32, 90), (torch.bfloat16, 300)):  # three blocks of K each
        assert_layers(layers_case([9], 3, L=1, H=size, F=size, dtype=dtype, **shape))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    for gated in (False, True):
        assert_layers(layers_case([5], 2, L=1, activation=activation, gated=gated))


def test_norms_without_weights_and_a_final_norm_after_norms_after():
    assert_layers(layers_case([5], 2, norms=False))
    more = {"pre_norm": False, "final": True, "norms": False}
    assert_layers(layers_case([5], 2, **OPT | more))
    assert_layers(layers_case([5], 2, **OPT | more | {"norms": True, "head_norms": True}))


@pytest.mark.parametrize("with_places", [True, False])
@pytest.mark.parametrize("name", ["opt", "opt-350m", "no final norm"])
def test_rows_are_made_of_embeddings_and_come_back_in_the_weights_type(name, with_places):
    shape = OPT | {"final": False} if name == "no final norm" else SHAPES[name]
    case = layers_case([9, 33], 3, H=70, dtype=torch.bfloat16, **shape)
    tokens, places = (random(40, 70, seed=seed).bfloat16() for seed in (1, 2))
    ids = torch.tensor([[3, 1, 39], [0, 3, 7]]).T.contiguous().T  # of any strides
    positions = case[7][:, None].expand(2, 3)
    case[HIDDEN] = tokens[ids].float()
    embedding = (ids, tokens, None, None, 0)
    if with_places:
        case[HIDDEN] += places[positions + 2].float()
        embedding = (ids, tokens, places, positions, 2)
    wanted = run(plain_layers.decoder_layers, case)
    case[HIDDEN] = torch.full((2, 3, 70), NAN, dtype=torch.bfloat16)
    got = run(partial(layers_in_triton, embedding=embedding), case)
    assert got[HIDDEN].dtype == torch.bfloat16
    for a, b in zip(got, wanted, strict=True):
        error = (a.double() - b.double()).norm()
        assert error <= TOLERANCE[torch.bfloat16] * b.double().norm()


@pytest.mark.parametrize("name", ["llama", "opt-350m"])
def test_rows_of_the_weights_type_are_taken_as_they_are(name):
    case = layers_case([9], 3, dtype=torch.bfloat16, **SHAPES[name])
    case[HIDDEN] = case[HIDDEN].bfloat16()
    wanted = run(plain_layers.decoder_layers, [case[HIDDEN].float(), *case[1:]])
    got = run(layers_in_triton, case)
    for a, b in zip(got, wanted, strict=True):
        error = (a.double() - b.double()).norm()
        assert error <= TOLERANCE[torch.bfloat16] * b.double().norm()


def test_rows_far_from_zero_keep_their_variance():
    """A sum of squares less a squared sum would have no digit left."""
    case = layers_case([0], 3, L=1, H=130, **OPT)
    case[HIDDEN] = 1000 + case[HIDDEN] / 10
    for got, exact in zip(
        run(layers_in_triton, case), run(plain_layers.decoder_layers, case), strict=True
    ):
        assert (got - exact).norm() <= 1e-2 * exact.norm()  # a float32's last digits at 1000


@settings(max_examples=8, phases=[Phase.generate])  # no shrinking, which would take minutes
@given(layers_cases(stored=False))
def test_layers_of_any_shape(case):
    layers = by_name(case[WEIGHTS], case[LOW_RANK])
    if module.unsupported(layers, case[TAIL_K].shape[-1]) is None:
        assert_layers(case)


# ---- bits ----------------------------------------------------------------------------------------


def part_of(case, text, rows):
    """Some rows of one text, which are siblings."""
    part = list(case)
    part[HIDDEN] = case[HIDDEN][text : text + 1, rows].contiguous()
    for i in (TAIL_K, TAIL_V):
        part[i] = case[i][:, text : text + 1, rows].contiguous()
    table, lengths = case[6][text : text + 1], case[7][text : text + 1]
    part[6] = table[:, : max(1, -(-int(lengths) // 16))].contiguous()  # as wide as it needs to be
    part[7], part[8] = lengths, siblings(len(rows))
    for i in (9, 10):
        if case[i] is not None:
            part[i] = case[i][text : text + 1, rows].contiguous()
    return part


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("qwen3", torch.float32), ("mistral", torch.bfloat16), ("opt-350m", torch.bfloat16)],
    ids=str,
)
@pytest.mark.usefixtures("row_by_row")
def test_a_row_has_the_same_bits_whatever_rows_and_texts_are_with_it(name, dtype, monkeypatch):
    cut = layer_pass.prefix_cut
    monkeypatch.setattr(layer_pass, "prefix_cut", lambda *a: cut(*a) | {"CHUNK": 64, "BLOCK_N": 32})
    case = layers_case([37, 150], 18, H=40, F=70, dtype=dtype, **SHAPES[name])
    whole = run(layers_in_triton, case)
    for text, rows in ((1, [17]), (0, [3, 16]), (1, list(range(18)))):
        hidden, tail_k, tail_v = run(layers_in_triton, part_of(case, text, rows))
        assert torch.equal(bits(hidden[0]), bits(whole[0][text, rows]))
        assert torch.equal(bits(tail_k[:, 0]), bits(whole[1][:, text, rows]))
        assert torch.equal(bits(tail_v[:, 0]), bits(whole[2][:, text, rows]))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((f"{name} joined", torch.float32) for name in ("qwen3", "gpt2", "no terms")),
        ("opt-350m joined", torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.usefixtures("row_by_row")
def test_a_joined_pass_is_two_passes_to_the_bit(name, dtype):
    """The language model's rows have the bits that they have without an adapter, too."""
    case = layers_case([37, 0, 90], 7, H=40, F=70, dtype=dtype, **ADAPTERS[name])
    hidden, *tails = run(layers_in_triton, case)
    plain, adapted = (run(layers_in_triton, part) for part in apart(case))
    assert torch.equal(bits(hidden), bits(torch.cat([plain[0], adapted[0]])))
    for got, wanted in zip(tails, [*plain[1:], *adapted[1:]], strict=True):
        assert torch.equal(bits(got), bits(wanted))


def test_a_NaN_of_the_language_models_rows_or_of_a_term_stays_with_them():
    case = layers_case([20], 3, **LLAMA, ranks=[4], joined=True)
    wanted = run(layers_in_triton, case)
    case[HIDDEN][0, 1, 3] = NAN
    hidden = run(layers_in_triton, case)[0]
    assert hidden[0, 1].isnan().all()
    assert torch.equal(bits(hidden[1]), bits(wanted[0][1]))
    case = layers_case([20], 3, **LLAMA, ranks=[4], joined=True)
    case[LOW_RANK][0] = torch.full_like(case[LOW_RANK][0], NAN)  # a of q
    hidden = run(layers_in_triton, case)[0]
    assert torch.equal(bits(hidden[0]), bits(wanted[0][0]))
    assert hidden[1].isnan().all()


def test_a_text_with_a_NaN_stays_alone():
    case = layers_case([20, 7], 3, **LLAMA)
    wanted = run(layers_in_triton, case)[0]
    case[HIDDEN][0, 2, 3] = NAN
    got = run(layers_in_triton, case)[0]
    assert got[0, 2].isnan().all()
    assert torch.equal(got[1], wanted[1])


# ---- what it cannot take -------------------------------------------------------------------------


def test_what_it_cannot_take_it_says():
    layers = by_name(layers_case([0], 1, stored=torch.int8)[WEIGHTS])
    assert "not torch.float32 and torch.int8" in module.unsupported(layers, 8)
    layers = by_name(layers_case([0], 1, stored=torch.bfloat16)[WEIGHTS])
    assert "torch.bfloat16 and torch.float32" in module.unsupported(layers, 8)
    layers = by_name(layers_case([0], 1)[WEIGHTS])
    assert "heads of up to 256 elements, not 300" in module.unsupported(layers, 300)
    layers[1]["v"] = layers[1]["v"].T.contiguous().T
    assert "k, v with the same strides" in module.unsupported(layers, 8)
    layers[1]["v"] = torch.zeros(32, 96)[::2, ::2]
    assert "rows or columns are in one piece" in module.unsupported(layers, 8)
    case = layers_case([0], 1, H=80, ranks=[None, 33])
    assert "rank up to 32, not 33" in module.unsupported(by_name(case[1], case[-2]), 8)


def test_more_rows_than_counters_are_refused():
    case = layers_case([0], 40)
    with pytest.raises(ValueError, match="40 rows at a time are more than"):
        module.decoder_layers(
            case[HIDDEN],
            by_name(case[WEIGHTS]),
            *case[2:LOW_RANK],
            counters=torch.zeros(4, dtype=torch.int32),
        )
