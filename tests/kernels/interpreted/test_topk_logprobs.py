"""The Triton topk_logprobs against sorted python floats, and against the plain implementation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from args_fast.kernels import topk_logprobs as module
from args_fast.kernels.topk_logprobs import topk_logprobs, unsupported
from args_fast.ops import plain

# numpy's, of infinities and overflows that are part of what is tested
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One logit, parts of a group (32), of a block (1024) and of the blocks that a k needs.
SIZES = [1, 2, 3, 31, 32, 33, 127, 129, 1000, 1024, 1025, 4097]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def naive(row, k):
    """One row of floats -> (logprobs, ids), in float64."""
    row = np.asarray(row, dtype=np.float64)
    if np.isnan(row).any() or row.max() == INF or row.max() == -INF:
        return [NAN] * k, list(range(k))
    ids = sorted(range(len(row)), key=lambda v: (-row[v], v))[:k]
    log_sum = math.log(math.fsum(np.exp(row - row.max())))
    return [row[v] - row.max() - log_sum for v in ids], ids


def assert_right(logits, k):
    B = logits.shape[0]
    logprobs, ids = topk_logprobs(logits, k)
    assert (logprobs.shape, ids.shape) == ((B, k), (B, k))
    assert (logprobs.dtype, ids.dtype) == (torch.float32, torch.int64)
    for row, got, chosen in zip(logits.tolist(), logprobs.tolist(), ids.tolist(), strict=True):
        wanted, wanted_ids = naive(row, k)
        assert chosen == wanted_ids
        assert got == pytest.approx(wanted, abs=1e-5, rel=1e-6, nan_ok=True)
    expected, expected_ids = plain.topk_logprobs(logits, k)
    assert torch.equal(ids, expected_ids)
    # The plain one subtracts from a logit a number near it, so its error is that of the logits.
    largest = logits.float().nan_to_num(0, 0, 0).abs().max().item()
    torch.testing.assert_close(
        logprobs, expected, atol=1e-5 + 2e-7 * largest, rtol=1e-6, equal_nan=True
    )


# Every size in one type, and those next to the edges of a group and a block in all.
SIZES_OF_TYPES = [(V, DTYPES[i % 3]) for i, V in enumerate(SIZES)]
SIZES_OF_TYPES += [(V, dtype) for V in (33, 1025) for dtype in DTYPES]


@pytest.mark.parametrize(("V", "dtype"), dict.fromkeys(SIZES_OF_TYPES))
def test_it_is_the_sorted_log_softmax(V, dtype):
    k = min(V, {torch.float32: 10, torch.bfloat16: 40, torch.float16: 3}[dtype])
    assert_right(random(1 + V % 2, V, seed=V, dtype=dtype) * 4, k)


@pytest.mark.parametrize("V", [1, 2, 3, 31, 127])
def test_k_may_be_the_whole_vocabulary(V):
    assert_right(random(1, V, dtype=torch.bfloat16), V)


@pytest.mark.parametrize(("V", "k", "dtype"), [(129, 128, DTYPES[1]), (9001, 128, DTYPES[0])])
def test_the_largest_k(V, k, dtype):
    assert_right(random(1, V, dtype=dtype), k)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_vocabulary_of_many_blocks(k):
    logits = random(1, 32_003, seed=k, dtype=torch.bfloat16)
    assert logits.unique().numel() < 3000  # there are ties
    assert_right(logits, k)


@pytest.mark.parametrize("per_program", [2, 4])
def test_programs_that_take_several_blocks(per_program, monkeypatch):
    for tuning in module.TUNING.values():
        monkeypatch.setitem(tuning, "many", per_program)
        monkeypatch.setitem(tuning, "programs", 1)
    assert_right(random(2, 5000, dtype=torch.float16), 6)


@pytest.mark.parametrize(
    ("V", "k", "dtype"),
    [(997, 40, DTYPES[0]), (997, 40, DTYPES[1]), (5003, 4, DTYPES[2]), (5003, 4, DTYPES[1])],
)
def test_equal_logits_come_in_the_order_of_their_ids(V, k, dtype):
    # Ties within a group, between groups and between blocks, also across the k-th place.
    assert_right(random(1, V, dtype=dtype).mul(2).round().clamp(-2, 2), k)
    assert_right(torch.zeros(1, V, dtype=dtype), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minus_zero_ties_with_zero(dtype):
    logits = torch.full((1, 2100), -1.0)
    logits[0, [5, 40, 1030, 2050]] = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    _, ids = topk_logprobs(logits.to(dtype), 6)
    assert ids.tolist() == [[5, 40, 1030, 2050, 0, 1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minus_infinity_is_an_ordinary_logit(dtype):
    logits = torch.full((2, 2100), -INF, dtype=dtype)
    logits[0, 2099] = -3.0
    logits[1, [1500, 7]] = torch.tensor([2.0, 1.0], dtype=dtype)
    assert_right(logits, 5)
    logprobs, ids = topk_logprobs(logits, 3)
    assert ids.tolist() == [[2099, 0, 1], [1500, 7, 0]]
    assert logprobs[0].tolist() == [0.0, -INF, -INF]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_without_a_distribution_is_nan_and_its_neighbours_are_not(dtype):
    logits = random(7, 1100, dtype=dtype)
    logits[1, 1099] = NAN
    logits[2, 3] = INF
    logits[3] = -INF
    logits[4] = NAN
    logits[5, :2] = torch.tensor([INF, NAN], dtype=dtype)
    logits[5, 2:] = -INF
    assert_right(logits, 2)
    assert topk_logprobs(logits, 2)[0].isnan().all(1).tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_a_block_of_infinities_and_one_nan():
    logits = torch.full((1, 3000), -INF)
    logits[0, 0], logits[0, 1500] = 1.0, NAN
    assert_right(logits, 2)


def test_large_logits_do_not_overflow():
    assert_right(torch.tensor([[128.0, 130.0, -128.0], [-200.0, -201.0, -200.0]]), 3)
    logprobs, ids = topk_logprobs(torch.tensor([[-1.0, 2.0**126, 0.0]]), 2)
    assert (logprobs.tolist(), ids.tolist()) == ([[0.0, -(2.0**126)]], [[1, 2]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_logit_of_16_bits_has_its_place(dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    sample = finite[torch.randperm(finite.numel(), generator=torch.Generator().manual_seed(0))]
    assert_right(sample[None, :4096], 32)


def test_logits_need_not_be_contiguous():
    wide = random(2, 4, 100)
    assert_right(wide[:, -1], 9)
    assert_right(random(100, 2).T, 9)
    assert_right(random(2, 200)[:, 3:103], 9)


def test_what_it_cannot_take_it_says():
    for V, k in [(5, 0), (5, 6), (1000, 129)]:
        assert f"k = {k} of V = {V}" in unsupported(torch.zeros(1, V), k)
    assert "up to 2097152 logits, not 2097153" in unsupported(torch.zeros(1, 2**21 + 1), 1)
    assert "float64" in unsupported(torch.zeros(1, 5, dtype=torch.float64), 1)
    assert unsupported(torch.zeros(1, 128), 128) is None


VALUES = [-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1e-30, -1e-30, 88.0, 3e38, -3e38]


@settings(max_examples=20, phases=[Phase.generate])  # no shrinking, which would take minutes
@given(
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=6),
    V=st.integers(1, 2500),
    k=st.integers(1, 16),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_any_row_of_few_values(values, V, k, dtype, seed):
    at = torch.randint(len(values), (1, V), generator=torch.Generator().manual_seed(seed))
    logits = torch.tensor(values).to(dtype)[at].clamp(max=torch.finfo(dtype).max)
    assert_right(logits, min(k, V))
