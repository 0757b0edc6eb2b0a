"""select in C++ against the plain one, over the shapes that hurt."""

import torch
from cpp_ops import needs_cpp, op
from hypothesis import given
from op_cases import INF, select_cases

from args_fast.ops import plain

pytestmark = needs_cpp


@given(select_cases())
def test_select_of_any_shape(case):
    for got, wanted in zip(op("select")(*case), plain.select(*case), strict=True):
        torch.testing.assert_close(got, wanted, atol=0, rtol=0, equal_nan=True)


def test_keys_that_are_infinite_or_nan_are_chosen_as_torch_chooses():
    huge = torch.tensor([[[1.0], [3e38], [2e38]], [[1.0], [0.0], [-1.0]], [[1.0], [2.0], [0.0]]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -2.0], [-INF] * 3])
    ones, w, noise = torch.ones(3), torch.tensor([4.0, INF, 1.0]), torch.zeros(3, 3)
    case = (huge, torch.ones(1), None, logprobs, w, ones, noise)
    for got, wanted in zip(op("select")(*case), plain.select(*case), strict=True):
        torch.testing.assert_close(got, wanted, atol=0, rtol=0, equal_nan=True)
