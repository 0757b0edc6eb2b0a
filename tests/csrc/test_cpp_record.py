"""The end of a step in C++, against plain torch."""

import pytest
import torch
from cpp_ops import needs_cpp
from record_cases import (
    BRANCH,
    RECORDS,
    STATS,
    TOKENS,
    assert_writes_what_plain_torch_writes,
    fill_every_column,
    record_case,
)

from args_fast.ops.record import plain

pytestmark = needs_cpp


def record(*arguments):
    torch.ops.args_fast_cpp.record.default(*arguments)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("B", "k", "S", "t"), RECORDS)
def test_it_writes_what_plain_torch_writes(B, k, S, t, strided):
    assert_writes_what_plain_torch_writes(record, B, k, S, t, strided)


def test_steps_after_each_other_fill_every_column():
    arguments = fill_every_column(record)
    with pytest.raises(RuntimeError, match="after the last step"):
        record(*arguments)


def test_what_a_choice_gives_may_be_columns():
    """Of k = 1 without a reward they are."""
    got, wanted = (record_case(3, 4, 2, 1) for _ in range(2))
    for case in (got, wanted):
        case[3:5] = (torch.arange(18.0).view(3, 6)[:, i] for i in (1, 4))
    record(*got)
    plain(*wanted)
    assert torch.equal(got[STATS], wanted[STATS])


@pytest.mark.parametrize("branch", [-1, 4])
def test_a_branch_that_is_not_a_candidate_is_refused(branch):
    case = record_case(2, 4, 3, 0)
    case[BRANCH][1] = branch
    with pytest.raises(RuntimeError, match="not a candidate"):
        record(*case)
    assert (case[TOKENS] == -1).all()


@pytest.mark.parametrize("place", range(11))
def test_other_shapes_types_and_strides_are_refused(place):
    for spoil in (lambda x: x.repeat(2, *[1] * (x.dim() - 1)), lambda x: x.half()):
        case = record_case(3, 4, 2, 0)
        case[place] = spoil(case[place])
        with pytest.raises(RuntimeError, match=r"args_fast: .*(shape|dtype)"):
            record(*case)
