"""branch_attention in C++ against the plain one, over the shapes that hurt."""

import pytest
import torch
from cpp_ops import needs_cpp, op, with_threads
from hypothesis import given
from op_cases import (
    DTYPES,
    NAN,
    SPLIT,
    TOLERANCE,
    attention_case,
    attention_cases,
    bits,
    chain,
    siblings,
    tree,
)

from args_fast.ops import plain

pytestmark = needs_cpp


def assert_attention(case, window=0, softcap=0.0, sinks=None, tolerance=None):
    out = op("branch_attention")(*case, window, softcap, sinks)
    wanted = plain.branch_attention(*case, window, softcap, sinks)
    tolerance = tolerance or TOLERANCE[out.dtype]
    torch.testing.assert_close(out, wanted, atol=tolerance, rtol=tolerance)
    assert out.is_contiguous()


@given(attention_cases())
def test_attention_of_any_shape(drawn):
    case, options = drawn
    assert_attention(case, *options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [1, 2, 3, 7, 8, 9, 63, 64, 65, 80, 127, 128, 200, 255, 256])
def test_any_head_size(D, dtype):
    assert_attention(attention_case([37, 0], 5, 4, 2, D, dtype=dtype))


@pytest.mark.parametrize(("Hq", "Hkv"), [(1, 1), (12, 12), (8, 2), (7, 1)])
@pytest.mark.parametrize("N", [1, 3, 4, 5, 40])
def test_any_grouping_of_heads(N, Hq, Hkv):
    assert_attention(attention_case([SPLIT + 5, 3], N, Hq, Hkv, 16))


@pytest.mark.parametrize("mask", [siblings, chain, tree])
@pytest.mark.parametrize("window", [1, 2, 5, 33, SPLIT - 3, SPLIT, SPLIT + 3, 2 * SPLIT])
def test_a_window_that_ends_anywhere_in_a_split(mask, window):
    assert_attention(attention_case([2 * SPLIT + 7, 5, 0], 6, 2, 1, 8, mask=mask(6)), window)


@pytest.mark.parametrize("D", [20, 64, 80])
@pytest.mark.parametrize("N", [1, 10])
def test_bfloat16_loses_little_but_the_rounding_of_the_result(N, D):
    case = attention_case([1040, 77], N, 6, 2, D, dtype=torch.bfloat16)
    case[0] *= 4  # weights of very different sizes
    wanted = plain.branch_attention(*case)  # in float32, but for the result
    out = op("branch_attention")(*case, 0, 0.0, None)
    # Queries and weights that are rounded to bfloat16 themselves change 6 to 27% of the results.
    assert (bits(out) != bits(wanted)).float().mean() < 0.01


def test_large_scores_do_not_overflow():
    case = attention_case([SPLIT + 9, 30], 5, 4, 2, 8)
    case[0] *= 3e3  # scores of 1e4, whose own rounding is 1e-3
    assert_attention(case, tolerance=1e-2)
    assert_attention(case, 0, 0.0, torch.tensor([-1e4, 0.0, 10.0, 1e4]), tolerance=1e-2)


def test_a_nan_reaches_its_own_rows_and_no_others():
    case = attention_case([40, 40, 300], 4, 4, 2, 8)
    case[0][1, 2, 3, 0] = NAN
    out = op("branch_attention")(*case, 0, 0.0, None)
    wrong = out.isnan().any(dim=3).nonzero().tolist()
    assert wrong == [[1, 2, 3]]


def test_a_nan_in_a_split_that_a_row_does_not_see_stays_out():
    case = attention_case([128], 2, 1, 1, 8, mask=chain(2))  # two splits of 64 tokens
    case[4][case[5][0, 63 // 16].long(), 63 % 16] = NAN  # the value of token 63
    out = op("branch_attention")(*case, 128 - 62, 0.0, None)  # rows see tokens from 63 and 64 on
    assert out[:, 0].isnan().all()
    assert not out[:, 1].isnan().any()


def test_no_sequences_give_no_rows():
    case = attention_case([3], 2, 2, 1, 8)
    for i in (0, 1, 2, 5, 6):
        case[i] = case[i][:0]
    out = op("branch_attention")(*case, 0, 0.0, None)
    assert out.shape == (0, 2, 2, 8)


@given(attention_cases())
def test_attention_has_the_same_bits_with_any_number_of_threads_and_in_any_batch(drawn):
    case, options = drawn
    outs = with_threads(lambda: op("branch_attention")(*case, *options))
    assert all(torch.equal(bits(out), bits(outs[0])) for out in outs)
    alone = [case[i][:1] for i in (0, 1, 2)], [case[i][:1] for i in (5, 6)]
    one = op("branch_attention")(*alone[0], *case[3:5], *alone[1], *case[7:], *options)
    assert torch.equal(bits(one), bits(outs[0][:1]))


@given(attention_cases())
def test_a_row_has_the_same_bits_whatever_rows_are_with_it(drawn):
    case, options = drawn
    N = case[0].shape[1]
    case[7] = siblings(N)  # rows that see one another cannot stand alone
    rows = op("branch_attention")(*case, *options)
    for first, last in [(0, 1), (N // 2, N), (N - 1, N), (0, (N + 1) // 2)]:
        part = [x[:, first:last] for x in case[:3]]
        out = op("branch_attention")(*part, *case[3:7], siblings(last - first), case[8], *options)
        assert torch.equal(bits(out), bits(rows[:, first:last]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_however_many_vectors_the_rows_fill(dtype):
    case = attention_case([1029, 95, 96], 16, 6, 2, 64, dtype=dtype)
    rows = op("branch_attention")(*case, 0, 0.0, None)
    for N in (1, 2, 5, 6, 11):  # 3 to 33 rows of a kv head
        part = [x[:, :N] for x in case[:3]]
        out = op("branch_attention")(*part, *case[3:7], siblings(N), case[8], 0, 0.0, None)
        assert torch.equal(bits(out), bits(rows[:, :N]))


@given(attention_cases())
def test_a_chain_has_the_same_bits_with_siblings_at_its_end(drawn):
    case, options = drawn
    N = case[0].shape[1]
    alone = [case[0][:, :1], case[1][:, :1], case[2][:, :1]]
    case[7] = chain(N)
    rows = op("branch_attention")(*case, *options)
    out = op("branch_attention")(*alone, *case[3:7], siblings(1), case[8], *options)
    assert torch.equal(bits(out), bits(rows[:, :1]))
    case[7] = torch.eye(N, dtype=torch.bool)
    case[7][:, 0] = True  # a tree of one parent: the first child is a chain of two
    pair = [x[:, :2] for x in case[:3]]
    tree_rows = op("branch_attention")(*case, *options)
    out = op("branch_attention")(*pair, *case[3:7], chain(min(N, 2)), case[8], *options)
    assert torch.equal(bits(out), bits(tree_rows[:, :2]))
