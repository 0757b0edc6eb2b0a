"""The end of a step: its arguments, and what every implementation of it has to do with them."""

import torch
from op_cases import random

from args_fast.ops.record import plain

BRANCH, NOISE, STEP, TOKENS, STATS, DRAWS = 2, 5, 6, 8, 9, 10
# B, k, S and the step, of record_case.
RECORDS = [(1, 1, 1, 0), (3, 10, 16, 0), (5, 3, 4, 3), (2, 40, 7, 5)]


def record_case(B, k, S, t, strided=False):
    """The arguments of ``args_fast.ops.record.record``."""
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


def assert_writes_what_plain_torch_writes(record, B, k, S, t, strided):
    got, wanted = (record_case(B, k, S, t, strided) for _ in range(2))
    record(*got)
    plain(*wanted)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
    assert got[STEP].item() == t + 1


def fill_every_column(record):
    """Steps after each other; returns the arguments afterwards."""
    arguments = record_case(2, 4, 3, 0)
    for t in range(3):
        assert torch.equal(arguments[DRAWS], arguments[NOISE][:, t])  # the draws of this step
        record(*arguments)
    assert (arguments[TOKENS] >= 0).all()
    return arguments
