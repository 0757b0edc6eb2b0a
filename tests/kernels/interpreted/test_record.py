"""The end of a step in Triton, against plain torch."""

import pytest
from record_cases import RECORDS, assert_writes_what_plain_torch_writes, fill_every_column

from args_fast.kernels.record import record


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("B", "k", "S", "t"), RECORDS)
def test_it_writes_what_plain_torch_writes(B, k, S, t, strided):
    assert_writes_what_plain_torch_writes(record, B, k, S, t, strided)


def test_steps_after_each_other_fill_every_column():
    fill_every_column(record)
