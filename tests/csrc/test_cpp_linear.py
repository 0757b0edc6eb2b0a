"""The product of few rows in C++, against sums in float64; and that a row's bits are its own."""

import pytest
import torch
from cpp_ops import needs_cpp, with_threads
from hypothesis import given
from hypothesis import strategies as st
from op_cases import DTYPES, NAN, bits, random, wider
from torch.nn import functional as F

from args_fast.ops.linear import cpu_linear

pytestmark = needs_cpp

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 131]


def case(M, N, K, dtype, *, bias=True, seed=0, strided=False):
    x, weight = (random(*shape, seed=seed + i) for i, shape in enumerate([(M, K), (N, K)]))
    return [
        wider(x.to(dtype), strided),
        wider(weight.to(dtype), strided),
        random(N, seed=seed + 2, dtype=dtype) if bias else None,
    ]


def int8_case(M, N, K, dtype, *, bias=True, seed=0, strided=False):
    """A case whose weight is of integers, with their scale."""
    x, weight, bias = case(M, N, K, dtype, bias=bias, seed=seed, strided=strided)
    integers = (weight.float() * 40).round().clamp(-127, 127).to(torch.int8)
    return [x, wider(integers, strided), bias, random(N, seed=seed + 3).abs() / 40]


def narrow_case(M, N, K, kind, *, bias=True, seed=0, strided=False):
    """A case in float32 whose weight is of 16 bits."""
    x, weight, bias = case(M, N, K, torch.float32, bias=bias, seed=seed, strided=strided)
    return [x, wider(weight.to(kind), strided), bias]


def assert_linear(x, weight, bias, scale=None):
    out = cpu_linear(x, weight, bias, scale)
    if scale is not None:
        weight = weight.double() * scale.double()[:, None]
    wanted = x.double() @ weight.double().T
    if bias is not None:
        wanted = wanted + bias.double()
    # Rounding of the result, and of a sum in float32 of terms this large.
    terms = x.double().abs() @ weight.double().abs().T
    allowed = torch.finfo(out.dtype).eps * wanted.abs() + 2**-21 * (terms + 1)
    assert ((out.double() - wanted).abs() <= allowed).all()
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    return out


MAKES = [(make, dtype) for make in (case, int8_case) for dtype in DTYPES]
MAKES += [(narrow_case, kind) for kind in (torch.bfloat16, torch.float16)]


@st.composite
def products(draw):
    size = st.sampled_from(SIZES)
    make, dtype = draw(st.sampled_from(MAKES))
    return make(
        draw(size),
        draw(size),
        draw(st.one_of(size, st.sampled_from([500, 512, 576, 1027]))),
        dtype,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
        strided=draw(st.booleans()),
    )


@given(products())
def test_linear_of_any_shape(drawn):
    assert_linear(*drawn)


@pytest.mark.parametrize(("make", "dtype"), MAKES)
@pytest.mark.parametrize(("N", "K"), [(9, 1100), (64, 40), (5, 2)])
def test_a_row_has_the_same_bits_whatever_rows_are_with_it(N, K, make, dtype):
    x, *weights = make(130, N, K, dtype)
    rows = cpu_linear(x, *weights)
    for M in range(1, 66):
        assert torch.equal(bits(cpu_linear(x[:M], *weights)), bits(rows[:M]))
    for subset in ([0], [64], [129], list(range(64, 74)), [3, 1, 100, 1], list(range(129, 30, -1))):
        assert torch.equal(bits(cpu_linear(x[subset], *weights)), bits(rows[subset]))


@pytest.mark.parametrize(("make", "dtype"), MAKES)
def test_bits_depend_on_neither_threads_nor_the_split_of_the_weights(make, dtype):
    x, *weights = make(10, 1000, 600, dtype)  # large enough for several threads
    outs = with_threads(lambda: cpu_linear(x, *weights))
    assert all(torch.equal(bits(out), bits(outs[0])) for out in outs)
    parts = [cpu_linear(x, *(w[i : i + 7] for w in weights)) for i in range(0, 1000, 7)]
    assert torch.equal(bits(torch.cat(parts, dim=1)), bits(outs[0]))


@pytest.mark.parametrize(("make", "dtype"), MAKES)
def test_a_nan_reaches_its_own_row_and_no_other(make, dtype):
    x, *weights = make(9, 20, 70, dtype)
    x[4, 69] = NAN
    out = cpu_linear(x, *weights)
    assert out[4].isnan().all()
    assert not out[[0, 1, 2, 3, 5, 6, 7, 8]].isnan().any()


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits_are_multiplied_as_floats(kind, scale):
    """The error is that of sums in float32, not of rows in 16 bits: of all sizes within a row."""
    x, weight, _ = narrow_case(40, 33, 1000, kind, bias=False)
    x *= scale * 10.0 ** torch.linspace(-3, 3, 1000)
    wanted = x.double() @ weight.double().T
    terms = x.double().abs() @ weight.double().abs().T
    error = ((cpu_linear(x, weight, None).double() - wanted).abs() / terms).max()
    assert error <= max(
        2**-22, 2 * ((x @ weight.float().T).double() - wanted).abs().max() / terms.max()
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_an_infinite_element_of_a_row_is_multiplied_as_a_float_is(kind):
    x, weight, _ = narrow_case(5, 20, 70, kind, bias=False)
    x[2, 7], x[3, 40] = torch.inf, -torch.inf
    wanted = x @ weight.float().T
    got = cpu_linear(x, weight, None)
    assert torch.equal(got.isinf(), wanted.isinf())
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("make", [case, narrow_case])
def test_nothing_is_read_after_the_end_of_a_row(make):
    x, weight, bias = make(7, 9, 37, torch.bfloat16)
    room = torch.full((9, 64), NAN, dtype=torch.bfloat16)
    room[:, :37] = weight
    assert torch.equal(bits(cpu_linear(x, room[:, :37], bias)), bits(cpu_linear(x, weight, bias)))


def test_torchs_products_are_the_same_before_and_after_ours():
    """Both shape the processor's tiles, where it has some."""
    x, weight, _ = case(40, 96, 320, torch.bfloat16)
    torchs = F.linear(x, weight)
    for rows in (1, 7, 40):
        ours = cpu_linear(x[:rows], weight[:5], None)
        assert torch.equal(F.linear(x, weight), torchs)
        assert torch.equal(cpu_linear(x[:rows], weight[:5], None), ours)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8), (0, 8), (2, 0, 3, 8)])
def test_the_shape_is_that_of_torchs_linear(shape):
    x, weight = random(*shape), random(5, 8, seed=1)
    wanted = F.linear(x, weight)
    torch.testing.assert_close(cpu_linear(x, weight, None), wanted)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(case, torch.float32), (int8_case, torch.float32), (narrow_case, torch.half)],
)
def test_the_op_keeps_the_contract_of_an_op(make, dtype):
    arguments = tuple(make(3, 5, 24, dtype))
    torch.library.opcheck(cpu_linear, arguments, test_utils=["test_schema", "test_faketensor"])


REFUSED = {
    "a weight of three dimensions": lambda x, w, b: (x, w[None], b),
    "columns of the weight": lambda x, w, b: (x, w.T.contiguous().T, b),
    "fewer columns of x": lambda x, w, b: (x[:, :7], w, b),
    "another dtype of x": lambda x, w, b: (x.half(), w, b),
    "other 16 bits of x": lambda x, w, b: (x.half(), w.bfloat16(), b.half()),
    "16 bits of the bias": lambda x, w, b: (x, w.half(), b.half()),
    "another dtype of the bias": lambda x, w, b: (x, w, b.half()),
    "a shorter bias": lambda x, w, b: (x, w, b[:4]),
    "a bias of two dimensions": lambda x, w, b: (x, w, b[None]),
    "float64": lambda x, w, b: (x.double(), w.double(), b.double()),
    "a number": lambda x, w, b: (x[0, 0], w, b),
    "integers without a scale": lambda x, w, b: (x, w.char(), b),
    "a scale of floats": lambda x, w, b: (x, w, b, torch.ones(5)),
    "a shorter scale": lambda x, w, b: (x, w.char(), b, torch.ones(4)),
    "a scale in 16 bits": lambda x, w, b: (x, w.char(), b, torch.ones(5).half()),
    "another dtype of the bias of integers": lambda x, w, b: (x, w.char(), b.half(), torch.ones(5)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_wrong_arguments_raise(why):
    with pytest.raises(RuntimeError, match="args_fast: "):
        cpu_linear(*REFUSED[why](*case(3, 5, 8, torch.float32)))
