"""The end of a step in Triton, against plain torch."""

import pytest
import torch
from op_cases import RECORDS, record_case

from args_fast.kernels.record import record
from args_fast.ops.record import plain


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("B", "k", "S", "t"), RECORDS)
def test_it_writes_what_plain_torch_writes(B, k, S, t, strided):
    got, wanted = (record_case(B, k, S, t, strided) for _ in range(2))
    record(*got)
    plain(*wanted)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
    assert got[6].item() == t + 1


def test_steps_after_each_other_fill_every_column():
    arguments = record_case(2, 4, 3, 0)
    for t in range(3):
        assert torch.equal(arguments[-1], arguments[5][:, t])  # the draws of this step
        record(*arguments)
    assert (arguments[8] >= 0).all()
