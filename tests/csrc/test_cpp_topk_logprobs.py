"""topk_logprobs in C++ against the plain one, over the shapes that hurt."""

import pytest
import torch
from cpp_ops import needs_cpp, op, with_threads
from hypothesis import given
from op_cases import CHUNK, DTYPES, INF, NAN, bits, logits, random

from args_fast.ops import plain

pytestmark = needs_cpp


def assert_topk(logits, k):
    logprobs, ids = op("topk_logprobs")(logits, k)
    wanted, wanted_ids = plain.topk_logprobs(logits, k)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(logprobs, wanted, atol=2e-5, rtol=1e-6, equal_nan=True)


@given(logits())
def test_topk_of_any_rows(drawn):
    assert_topk(*drawn)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("V", "k"), [(1, 1), (8, 8), (9, 9), (CHUNK, 128), (CHUNK + 1, 128), (128256, 40)]
)
def test_topk_at_the_borders_of_a_chunk(V, k, dtype):
    assert_topk(random(3, V, seed=V, dtype=dtype) * 5, k)
    assert_topk(torch.zeros(2, V, dtype=dtype), k)
    last = torch.full((1, V), -INF, dtype=dtype)
    last[0, -1] = 2.0
    assert_topk(last, k)


def test_the_best_of_a_row_may_all_lie_in_its_last_chunk():
    rows = torch.arange(3.0 * CHUNK)[None] / 1000
    assert_topk(rows, 128)
    assert_topk(rows.flip(1), 128)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("at", [0, 7, CHUNK, -1])
def test_one_bad_logit_anywhere_breaks_its_row_alone(bad, at):
    rows = random(3, CHUNK + 13)
    rows[1, at] = bad
    assert_topk(rows, 5)
    assert op("topk_logprobs")(rows, 5)[0].isnan().any(dim=1).tolist() == [False, True, False]


@given(logits())
def test_topk_has_the_same_bits_with_any_number_of_threads(drawn):
    results = with_threads(lambda: op("topk_logprobs")(*drawn), (1, 2, 5))
    for logprobs, ids in results:
        assert torch.equal(bits(logprobs), bits(results[0][0]))
        assert torch.equal(ids, results[0][1])
