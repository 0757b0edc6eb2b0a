"""Whole decoder layers in C++, against the plain ones; and that a row's bits are its own."""

import pytest
import torch
from cpp_ops import needs_cpp, with_threads
from hypothesis import given
from layer_cases import ACTIVATIONS, LLAMA, OPT, SHAPES, apart, layers_case, layers_cases
from op_cases import DTYPES, NAN, SPLIT, bits, chain, siblings, tree

from args_fast.ops import plain_layers
from args_fast.ops.decoder_layers import decoder_layers
from args_fast.ops.schemas import LAYER_WEIGHTS, MATRICES, TERM

pytestmark = needs_cpp

# Relative error of a result. In bfloat16 the C++ op rounds what it multiplies, and the plain one
# does not.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 2e-3}
HIDDEN, TAIL_K, TAIL_V = 0, 2, 3  # the arguments that are written
MASK = 8
ADAPTED = -1  # whose first two are, too


def run(function, case):
    """hidden, tail_k, tail_v and those of the adapted rows afterwards; the case stays as it was."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in case]
    copies[ADAPTED] = [x.clone() for x in case[ADAPTED]]
    assert function(*copies) is None
    return [copies[HIDDEN], copies[TAIL_K], copies[TAIL_V], *copies[ADAPTED][:2]]


def assert_layers(case):
    for got, wanted in zip(
        run(decoder_layers(), case), run(plain_layers.decoder_layers, case), strict=True
    ):
        error = (got.double() - wanted.double()).norm()
        assert error <= TOLERANCE[case[TAIL_K].dtype] * wanted.double().norm()


@given(layers_cases())
def test_layers_of_any_shape(case):
    assert_layers(case)


ALL_SHAPES = SHAPES | {
    "llama in int8": LLAMA | {"stored": torch.int8},
    "opt in int8": OPT | {"stored": torch.int8},
    "llama adapted": LLAMA | {"ranks": [8, 0, 3]},
    "opt adapted": OPT | {"ranks": [None, 5, 20]},
    "gpt2 adapted": OPT | {"columns": True, "activation": "gelu_tanh", "ranks": [4]},
    "llama in int8 adapted": LLAMA | {"stored": torch.int8, "ranks": [7, 2]},
    "llama joined": LLAMA | {"ranks": [8, 0, 3], "joined": True},
    "qwen3 joined": LLAMA | {"head_norms": True, "ranks": [70, None], "joined": True},
    "opt joined": OPT | {"pre_norm": False, "final": False, "ranks": [None, 5], "joined": True},
    "gpt2 joined": OPT | {"columns": True, "ranks": [4], "joined": True},
    "llama in int8 joined": LLAMA | {"stored": torch.int8, "ranks": [7, 2], "joined": True},
}
NARROW_SHAPES = {
    f"{name} in {str(kind).removeprefix('torch.')}": ALL_SHAPES[name] | {"stored": kind}
    for kind in (torch.bfloat16, torch.float16)
    for name in ("llama", "opt", "llama adapted", "qwen3 joined")
}  # in float32
EVERY_CASE = [(name, dtype) for name in ALL_SHAPES for dtype in DTYPES]
EVERY_CASE += [(name, torch.float32) for name in NARROW_SHAPES]
ALL_SHAPES |= NARROW_SHAPES


@pytest.mark.parametrize(("name", "dtype"), EVERY_CASE)
def test_layers_of_models(name, dtype):
    assert_layers(layers_case([37, 0, SPLIT + 5], 5, dtype=dtype, **ALL_SHAPES[name]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_torchs_over_its_whole_range(activation):
    values = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -0.0, 90.0, -90.0])])
    F = len(values)
    case = layers_case([0], 1, L=1, H=2, F=F, D=8, Hq=1, Hkv=1, gated=False, activation=activation)
    of = dict(zip(LAYER_WEIGHTS, case[1], strict=True))
    for weight in of.values():
        weight.zero_()
    # hidden is normed to (1, 1); `up` makes the values, `down` leaves one of them.
    of["norm2"].fill_(1.0)
    case[0].fill_(3.0)
    of["up"][:, 0] = values
    wanted = plain_layers.ACTIVATIONS[activation](values.double())
    case[16], case[17], case[18] = True, None, None
    for i in range(0, F, 37):
        of["down"].zero_()
        of["down"][0, i] = 1.0
        got = run(decoder_layers(), case)[0][0, 0, 0] - 3.0
        assert abs(got.double() - wanted[i]) <= 1e-5 * (1 + abs(wanted[i]))


# ---- prompts: rows without a mask ----------------------------------------------------------------


def prompt_case(lengths, N, **options):
    case = layers_case(lengths, N, **options)
    case[MASK] = None
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("windows", [[0, 0], [1, 70]], ids=str)
@pytest.mark.parametrize("N", [1, 31, 64, 97, 200])
def test_a_prompt_is_a_chain(N, windows, dtype):
    options = {"D": 16, "windows": windows, "dtype": dtype}
    case = prompt_case([37, 0, SPLIT + 5], N, **options)
    assert_layers(case)
    as_chain = layers_case([37, 0, SPLIT + 5], N, mask=chain(N), **options)
    for got, wanted in zip(
        run(decoder_layers(), case), run(decoder_layers(), as_chain), strict=True
    ):
        assert (got - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


def test_a_prompt_of_two_models_is_a_chain():
    assert_layers(prompt_case([37, 0], 70, ranks=[8, 0, 3], joined=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_in_a_prompt_reaches_no_earlier_rows(dtype):
    case = prompt_case([40, 3], 50, dtype=dtype)
    clean = run(decoder_layers(), case)
    case[HIDDEN][1, 20] = NAN
    for got, wanted in zip(run(decoder_layers(), case), clean, strict=True):
        rows = got if got.dim() == 3 else got.movedim(0, 2).flatten(2)  # [B, N, ..]
        assert rows[1, 20:].isnan().any(-1).all()
        rows, wanted = (x.nan_to_num() for x in (rows, wanted.view_as(got)))
        wanted = wanted if got.dim() == 3 else wanted.movedim(0, 2).flatten(2)
        for part in ((0, slice(None)), (1, slice(20))):
            error = (rows[part].double() - wanted[part].double()).norm()
            assert error <= TOLERANCE[dtype] * wanted[part].double().norm()


def test_a_prompt_has_the_same_bits_with_any_number_of_threads_and_in_any_batch():
    case = prompt_case([300, 0, 37], 70, D=64)
    results = with_threads(lambda: run(decoder_layers(), case))
    for result in results[1:]:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(result, results[0], strict=True))
    case[MASK] = chain(70)
    alone = part_of(case, [2], list(range(70)))
    alone[MASK] = None
    hidden = run(decoder_layers(), alone)[HIDDEN]
    assert torch.equal(bits(hidden), bits(results[0][HIDDEN][2:]))


# ---- bits ----------------------------------------------------------------------------------------


def part_of(case, sequences, rows):
    """The case of some sequences, and of some of their rows, which are siblings."""
    (hidden, weights, tail_k, tail_v, k_pages, v_pages, table, lengths, mask, cos, sin), rest = (
        case[:11],
        case[11:],
    )
    return [
        torch.cat([half[sequences][:, rows] for half in hidden.split(len(lengths))]),
        weights,
        *(x[:, sequences][:, :, rows] for x in (tail_k, tail_v)),
        k_pages,
        v_pages,
        table[sequences],
        lengths[sequences],
        siblings(len(rows)) if len(rows) < len(mask) else mask,
        *(None if x is None else x[sequences][:, rows].contiguous() for x in (cos, sin)),
        *rest[:-1],
        [x[:, sequences][:, :, rows] for x in rest[-1][:2]] + rest[-1][2:],
    ]


@pytest.mark.parametrize(("name", "dtype"), EVERY_CASE)
def test_a_row_has_the_same_bits_whatever_rows_and_sequences_are_with_it(name, dtype):
    case = layers_case([37, 0, SPLIT + 5, 16], 20, F=70, H=40, dtype=dtype, **ALL_SHAPES[name])
    whole = run(decoder_layers(), case)  # 80 rows: two blocks
    every = list(range(20))
    for sequences, rows in [
        ([0], every),
        ([2, 1], every),
        ([0, 1, 2, 3], [3]),
        ([2], [19]),
        ([1], [0, 7]),
        ([3, 0, 2], list(range(9))),
    ]:
        parts = run(decoder_layers(), part_of(case, sequences, rows))
        halves = whole[0].split(4), parts[0].split(len(sequences))
        for of_whole, part in zip(*halves, strict=True):
            assert torch.equal(bits(part), bits(of_whole[sequences][:, rows]))
        for part, tail in zip(parts[1:], whole[1:], strict=True):
            assert torch.equal(bits(part), bits(tail[:, sequences][:, :, rows]))


@pytest.mark.parametrize("name", ALL_SHAPES)
def test_the_bits_are_the_same_with_any_number_of_threads(name):
    case = layers_case([37, 0, SPLIT + 5], 5, F=300, H=200, Hq=8, Hkv=4, **ALL_SHAPES[name])
    results = with_threads(lambda: run(decoder_layers(), case))
    for result in results:
        for got, wanted in zip(result, results[0], strict=True):
            assert torch.equal(bits(got), bits(wanted))


@pytest.mark.parametrize("mask", [siblings, chain, tree])
@pytest.mark.parametrize(("name", "dtype"), [c for c in EVERY_CASE if " joined" in c[0]])
def test_a_joined_pass_is_two_passes_to_the_bit(name, dtype, mask):
    case = layers_case([37, 0, 90], 7, dtype=dtype, mask=mask(7), **ALL_SHAPES[name])
    hidden, *tails = run(decoder_layers(), case)
    plain, adapted = (run(decoder_layers(), part) for part in apart(case))
    assert torch.equal(bits(hidden), bits(torch.cat([plain[0], adapted[0]])))
    for got, wanted in zip(tails, [*plain[1:], *adapted[1:]], strict=True):
        assert torch.equal(bits(got), bits(wanted))


def test_a_nan_reaches_its_own_row_and_no_other():
    case = layers_case([37, 0, 5], 4, **LLAMA)
    case[HIDDEN][1, 2, 3] = NAN
    hidden = run(decoder_layers(), case)[0]
    assert hidden.isnan().any(dim=2).nonzero().tolist() == [[1, 2]]


def test_no_sequences_give_no_rows():
    case = part_of(layers_case([3], 2, **LLAMA), [0], [0, 1])
    for i in (0, 6, 7, 9, 10):
        case[i] = case[i][:0]
    case[TAIL_K], case[TAIL_V] = case[TAIL_K][:, :0], case[TAIL_V][:, :0]
    assert run(decoder_layers(), case)[0].shape == (0, 2, 24)


# ---- what the library holds ----------------------------------------------------------------------


def test_layers_held_are_the_callers_tensors_wherever_they_move():
    case, op = layers_case([5, 20], 2, **LLAMA), decoder_layers()
    before = run(op, case)[0]
    for weight in case[1]:
        weight.data = weight.data * 1.25
    after = run(op, case)[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, run(decoder_layers(), case)[0])


def test_more_lists_than_an_op_holds():
    op, cases = decoder_layers(), [layers_case([5], 2, **LLAMA, seed=seed) for seed in range(9)]
    for case in (*cases, *cases):
        assert torch.equal(run(op, case)[0], run(decoder_layers(), case)[0])


def test_weights_are_let_go_with_the_op():
    case, op = layers_case([5], 2, **LLAMA), decoder_layers()
    weight = case[1][2]
    alone = weight._use_count()
    run(op, case)
    assert weight._use_count() == alone + 1
    del op
    assert weight._use_count() == alone
    last = torch.ops.args_fast_cpp.hold_layers.default(case[1], [])
    torch.ops.args_fast_cpp.release_layers.default(last)
    torch.ops.args_fast_cpp.release_layers.default(last)  # once more does nothing
    with pytest.raises(RuntimeError, match=f"layers {last} are not held, or were released"):
        torch.ops.args_fast_cpp.decoder_layers.default(case[HIDDEN], last, *case[2:-2], [])


# ---- refusals ------------------------------------------------------------------------------------

NAMES = (
    *("hidden", "weights", "tail_k", "tail_v", "k_pages", "v_pages", "page_table"),
    *("prefix_lengths", "tail_mask", "cos", "sin", "scales", "windows", "norm", "eps"),
    *("activation", "pre_norm", "final_norm", "final_norm_bias", "low_rank", "adapted"),
)


def term(name, part, change):
    """A change of one tensor of the second layer's adapter."""
    index = (len(MATRICES) + MATRICES.index(name)) * len(TERM) + TERM.index(part)
    return {"low_rank": lambda terms: [change(x) if i == index else x for i, x in enumerate(terms)]}


def weight(name, change):
    """A change of one tensor of the second layer."""
    index = len(LAYER_WEIGHTS) + LAYER_WEIGHTS.index(name)

    def changed(weights):
        return [change(x) if i == index else x for i, x in enumerate(weights)]

    return {"weights": changed}


REFUSED = {
    "hidden in 16 bits": {"hidden": lambda x: x.half()},
    "fewer rows": {"hidden": lambda x: x[:, :2].contiguous()},
    "hidden with gaps": {"hidden": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)},
    "a longer hidden state": {"hidden": lambda x: torch.cat([x, x], dim=2)},
    "fewer tensors": {"weights": lambda x: x[:-1]},
    "fewer layers": {"scales": lambda x: x[:1]},
    "fewer layers of the tail": {"tail_k": lambda x: x[:1]},
    "fewer layers of the pages": {"v_pages": lambda x: x[:1]},
    "a tail of another type": {"tail_k": lambda x: x.half()},
    "a page beyond the last": {"page_table": lambda x: x + 9},
    "a length beyond the table": {"prefix_lengths": lambda x: x + 100},
    "a smaller mask": {"tail_mask": lambda x: x[:2, :2].contiguous()},
    "cos alone": {"sin": lambda x: None},
    "cos for fewer rows": {"cos": lambda x: x[:, :2].contiguous()},
    "a rotation beyond the head": {n: lambda x: torch.cat([x, x], dim=2) for n in ("cos", "sin")},
    "an odd rotation": {n: lambda x: x[..., :3].contiguous() for n in ("cos", "sin")},
    "cos in 16 bits": {"cos": lambda x: x.half()},
    "another norm": {"norm": lambda x: "batch"},
    "another activation": {"activation": lambda x: "mish"},
    "a window below 0": {"windows": lambda x: [0, -1]},
    "a shorter final norm": {"final_norm": lambda x: x[:5]},
    "a final norm of another type": {"final_norm": lambda x: x.half()},
    "no queries": weight("q", lambda x: x[:0]),
    "fewer keys": weight("k", lambda x: x[:8]),
    "a longer row": weight("o", lambda x: torch.cat([x, x], dim=1)),
    "a weight of another type": weight("up", lambda x: x.half()),
    "a turned weight": weight("down", lambda x: x.T.contiguous().T),
    "a weight of integers among others": weight("up", lambda x: x.char()),
    "a shorter norm": weight("norm2", lambda x: x[:5]),
    "a norm of heads as long as hidden": weight("q_norm", lambda x: torch.ones(24)),
}


REFUSED |= {
    "fewer tensors of an adapter": {"low_rank": lambda x: x[:-1]},
    "a longer row of a": term("o", "a", lambda x: torch.cat([x, x], dim=1)),
    "a in 16 bits": term("up", "a", lambda x: x.half()),
    "another rank of b": term("q", "b", lambda x: x[:1]),
    "b in 16 bits": term("down", "b", lambda x: x.half()),
    "b with gaps": term("k", "b", lambda x: x.T.contiguous().T),
    "a shorter bias of an adapter": term("v", "bias", lambda x: x[:3]),
}
REFUSED_JOINED = {
    "hidden of one reader": {"hidden": lambda x: x[:2].contiguous()},
    "no pages": {"adapted": lambda x: x[:2]},
    "fewer adapted layers": {"adapted": lambda x: [x[0][:1], *x[1:]]},
    "fewer adapted rows": {"adapted": lambda x: [x[0][:, :, :2], x[1][:, :, :2], *x[2:]]},
    "adapted values of other rows": {"adapted": lambda x: [x[0], x[1][:, :, :2], *x[2:]]},
    "an adapted tail of another type": {"adapted": lambda x: [y.half() for y in x]},
    "fewer adapted pages": {"adapted": lambda x: [*x[:2], x[2][:, :2], x[3][:, :2]]},
    "adapted pages in gaps": {"adapted": lambda x: [*x[:3], x[3].transpose(3, 4)]},
}
REFUSED_IN_INT8 = {
    "a weight of no integers": weight("up", lambda x: x.float()),
    "no scale": weight("down_scale", lambda x: x[:0]),
    "a scale in 16 bits": weight("q_scale", lambda x: x.half()),
    "a scale with gaps": weight("v_scale", lambda x: x[:, None].expand(-1, 2).contiguous()[:, 0]),
}
REFUSED_IN_16_BITS = {
    "a weight of floats": weight("down", lambda x: x.float()),
    "a weight of other 16 bits": weight("k", lambda x: x.half()),
    "a norm in 16 bits": weight("norm1", lambda x: x.bfloat16()),
    "a tail in 16 bits": {"tail_k": lambda x: x.bfloat16(), "tail_v": lambda x: x.bfloat16()},
}
REFUSED_WITH = {"": REFUSED, "int8": REFUSED_IN_INT8, "16 bits": REFUSED_IN_16_BITS}
REFUSED_WITH["joined"] = REFUSED_JOINED
OPTIONS = {"int8": {"stored": torch.int8}, "16 bits": {"stored": torch.bfloat16}}
OPTIONS["joined"] = {"joined": True}


@pytest.mark.parametrize(
    ("option", "why"), [(option, why) for option, of in REFUSED_WITH.items() for why in of]
)
def test_wrong_arguments_raise_before_anything_is_written(option, why):
    made = layers_case([17, 20], 3, **LLAMA, **OPTIONS.get(option, {}), ranks=[4])
    case = dict(zip(NAMES, made, strict=True))
    run(decoder_layers(), list(case.values()))  # right as they are
    for name, change in REFUSED_WITH[option][why].items():
        case[name] = change(case[name])
    before = case["hidden"].clone(), case["tail_v"].clone()
    with pytest.raises(RuntimeError, match="args_fast: "):
        decoder_layers()(*case.values())
    assert torch.equal(case["hidden"], before[0])
    assert torch.equal(case["tail_v"], before[1])
