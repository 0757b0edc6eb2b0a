"""The end of a step in Triton, against plain torch."""

import pytest
import torch
from op_cases import random

from args_fast.kernels.record import record
from args_fast.ops.record import plain


def case(B, k, S, t, strided=False):
    generator = torch.Generator().manual_seed(B + k)
    ids = torch.randint(1000, (B, 2 * k), generator=generator)
    logprobs = random(B, 2 * k)
    ids, logprobs = (x[:, ::2] if strided else x[:, :k].contiguous() for x in (ids, logprobs))
    noise, f32 = random(B, S, k, seed=3), torch.float32
    return [
        ids,
        logprobs,
        torch.randint(k, (B,), generator=generator),
        random(B, seed=1),
        random(B, seed=2),
        noise,
        torch.tensor([t]),
        torch.zeros(B, 1, dtype=torch.int64),
        torch.full((B, S), -1),
        torch.zeros(B, S, 3, dtype=f32),
        noise[:, t].clone(),
    ]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(
    ("B", "k", "S", "t"), [(1, 1, 1, 0), (3, 10, 16, 0), (5, 3, 4, 3), (2, 40, 7, 5)]
)
def test_it_writes_what_plain_torch_writes(B, k, S, t, strided):
    got, wanted = (case(B, k, S, t, strided) for _ in range(2))
    record(*got)
    plain(*wanted)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
    assert got[6].item() == t + 1


def test_steps_after_each_other_fill_every_column():
    arguments = case(2, 4, 3, 0)
    for t in range(3):
        assert torch.equal(arguments[-1], arguments[5][:, t])  # the draws of this step
        record(*arguments)
    assert (arguments[8] >= 0).all()
