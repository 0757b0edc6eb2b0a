"""The Triton linear against numpy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from args_fast.kernels import linear as module
from args_fast.kernels.linear import ARRIVALS, linear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result, and float32 sums in another order.
RELATIVE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(M, N, K, dtype=torch.float32, bias=True, seed=0):
    x = random(M, K, seed=seed, dtype=dtype)
    weight = random(N, K, seed=seed + 1, dtype=dtype)
    return x, weight, random(N, seed=seed + 2, dtype=dtype) if bias else None


def counters():
    return torch.zeros(ARRIVALS, dtype=torch.int32)


def double(tensor):
    return tensor.float().numpy().astype(np.float64)


def assert_right(x, weight, bias):
    arrivals = counters()
    got = linear(x, weight, bias, arrivals)
    assert got.dtype == x.dtype
    assert got.shape == (*x.shape[:-1], weight.shape[0])
    assert not arrivals.any()  # as they were found
    expected = double(x) @ double(weight).T
    if bias is not None:
        expected = expected + double(bias)
    size = np.abs(double(x)) @ np.abs(double(weight)).T  # what the terms' rounding grows with
    error = np.abs(double(got) - expected)
    assert (error <= RELATIVE[x.dtype] * np.abs(expected) + 1e-6 * size + 1e-6).all()


ONE = [(1, 1), (3, 7), (64, 128), (131, 1000), (8, 1024), (9, 1025), (100, 64)]
SOME = [(2, 1, 1), (2, 65, 129), (10, 64, 128), (16, 131, 500), (40, 70, 300)]
# Every shape in one type, with a bias or without, and one of each in all types, both ways.
CASES = [((1, *shape), DTYPES[i % 3], i % 2 == 0) for i, shape in enumerate(ONE)]
CASES += [(shape, DTYPES[i % 3], i % 2 == 0) for i, shape in enumerate(SOME)]
CASES += [
    (shape, dtype, bias)
    for shape in ((1, 65, 129), (17, 63, 65))
    for dtype in DTYPES
    for bias in (True, False)
]


@pytest.mark.parametrize(("shape", "dtype", "bias"), CASES, ids=str)
def test_shapes(shape, dtype, bias):
    assert_right(*inputs(*shape, dtype, bias=bias))


@pytest.mark.parametrize("M", [2, 15, 16, 31, 33, 64])
def test_every_padding_of_rows(M):
    assert_right(*inputs(M, 40, 200, torch.bfloat16))


@pytest.mark.parametrize(
    ("K", "dtype"), [(256, DTYPES[0]), (300, DTYPES[1]), (1100, DTYPES[2]), (1100, DTYPES[0])]
)
def test_k_in_several_splits(K, dtype, monkeypatch):
    monkeypatch.setattr(module, "divide", lambda tiles, blocks, *_: min(3, blocks))
    assert_right(*inputs(10, 70, K, dtype))
    assert_right(*inputs(33, 70, K, dtype, bias=False))


@settings(max_examples=50)
@given(tiles=st.integers(1, 9000), blocks=st.integers(1, 300), slots=st.integers(1, 300))
def test_splits_fit_the_blocks_and_the_counters(tiles, blocks, slots):
    splits = module.divide(tiles, blocks, slots, 0.2)
    assert 1 <= splits <= min(module.SPLITS, blocks)
    if tiles > ARRIVALS:
        assert splits == 1


@pytest.mark.parametrize("splits", [1, 2, 5, 8])
def test_any_number_of_splits_takes_every_column_once(splits, monkeypatch):
    monkeypatch.setattr(module, "divide", lambda *_: splits)
    # Integers, whose sums are exact in any order: nothing may be missing, nothing counted twice.
    x = random(4, 8 * 128 + 5).mul(4).round()
    weight = random(67, 8 * 128 + 5, seed=1).mul(4).round()
    arrivals = counters()
    assert torch.equal(linear(x, weight, None, arrivals), x @ weight.T)
    assert torch.equal(linear(x, weight, None, arrivals), x @ weight.T)
    assert not arrivals.any()


def test_whoever_arrives_last_adds_in_the_same_order(monkeypatch):
    """The last arrival of a tile is made to look like the last by counters that begin elsewhere:
    a program in the middle merges then what an earlier call left."""
    monkeypatch.setattr(module, "divide", lambda *_: 4)
    kept = []
    empty = torch.Tensor.new_empty

    def once(self, shape, **options):  # one partial for both calls
        if options.get("dtype") != torch.float32:
            return empty(self, shape, **options)
        if not kept:
            kept.append(empty(self, shape, **options))
        return kept[0]

    monkeypatch.setattr(torch.Tensor, "new_empty", once)
    x, weight, bias = inputs(10, 64, 1000, torch.bfloat16)
    expected = linear(x, weight, bias, counters())
    arrivals = counters()
    arrivals[0] = 2  # the second of the four programs finds itself to be the last
    assert torch.equal(linear(x, weight, bias, arrivals), expected)
    assert arrivals[0] == 2  # the third and the fourth were counted afresh


def test_leading_dimensions_are_rows():
    x, weight, bias = inputs(6, 33, 50)
    got = linear(x.view(2, 3, 50), weight, bias, counters())
    assert torch.equal(got, linear(x, weight, bias, counters()).view(2, 3, 33))
    assert_right(x.view(1, 6, 1, 50), weight, bias)


@pytest.mark.parametrize("M", [1, 5])
def test_inputs_need_not_be_contiguous(M):
    x, weight, bias = inputs(M, 33, 64)
    expected = linear(x, weight, bias, counters())
    wide = torch.full((M, 3, 80), torch.nan)
    wide[:, 1, 8:72] = x
    views = [wide[:, 1, 8:72], x.T.contiguous().T]
    if M == 1:
        views.append(wide[:, 1, 8:72][None])
    for view in views:
        assert torch.equal(linear(view, weight, bias, counters()).view(M, 33), expected)
    wide = torch.full((33, 70), torch.nan)
    wide[:, 3:67] = weight
    assert torch.equal(linear(x, wide[:, 3:67], bias, counters()), expected)


@pytest.mark.parametrize("M", [1, 3, 20])
def test_nan_and_infinity_stay_in_their_rows_and_columns(M):
    x, weight, bias = inputs(M, 70, 100)
    weight[69, 5] = torch.inf
    x[M - 1, 7] = torch.nan
    got = linear(x, weight, bias, counters())
    assert got[M - 1].isnan().all()
    assert got[: M - 1, :69].isfinite().all()
    assert got[: M - 1, 69].isinf().all()


def test_what_it_cannot_take_is_refused():
    x, weight, bias = inputs(65, 8, 16)
    with pytest.raises(ValueError, match="not 65 rows"):
        linear(x, weight, bias, counters())
    with pytest.raises(ValueError, match=r"strides \(1, 8\)"):
        linear(x[:2], weight.T.contiguous().T, bias, counters())


@settings(max_examples=25, phases=[Phase.generate])  # no shrinking, which would take minutes
@given(
    M=st.integers(1, 64),
    N=st.integers(1, 150),
    K=st.integers(1, 600),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
)
def test_any_shape(M, N, K, dtype, bias):
    assert_right(*inputs(M, N, K, dtype, bias, seed=M + N + K))
