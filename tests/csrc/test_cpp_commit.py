"""commit in C++ against the plain one, over the shapes that hurt."""

import torch
from cpp_ops import needs_cpp, op
from hypothesis import given
from op_cases import NAN, bits, commit_cases

from args_fast.ops import plain

pytestmark = needs_cpp


@given(commit_cases())
def test_commit_of_any_shape(case):
    case[0].flatten()[0] = NAN  # moved like any other value
    wanted = [x.clone() for x in case]
    assert op("commit")(*case) is None
    plain.commit(*wanted)
    for got, expected in zip(case, wanted, strict=True):
        assert torch.equal(bits(got), bits(expected))
