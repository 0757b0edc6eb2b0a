"""Every op of a step by every backend that is here, at the sizes of OPT-125M with 10 candidates.

`make bench-steps`, or `pytest bench/test_ops.py --benchmark-only`. Each output is compared with the
plain one before it is timed. bench/ops_bench.py has many sizes, and peers from other libraries.
"""

import os
from functools import cache

import pytest
import torch

from args_fast.bench import ops_cases
from args_fast.ops.backends import TABLE

DEVICE = torch.device(os.environ.get("ARGS_FAST_TEST_DEVICE", "cpu"))
HEADS = {"Hkv": 12, "D": 64}
SIZES: dict[str, dict[str, int]] = {
    "topk_logprobs": {"V": 50272, "B": 1, "k": 10},
    "branch_attention": {"t": 512, "N": 10, "Hq": 12, **HEADS, "B": 1},
    "select": {"B": 1, "k": 10, "H": 768},
    "commit": {"L": 12, "B": 1, "N": 10, **HEADS},
    "select_commit": {"L": 12, "B": 1, "N": 10, "H": 768, **HEADS},
}
ROUNDS = 50  # pages hold that many commits


@cache
def prepared(op):
    return ops_cases.prepare(ops_cases.Case(op, tuple(SIZES[op].items())), DEVICE)


@pytest.mark.parametrize(
    ("op", "backend"), [(op, backend) for op in SIZES for backend in TABLE[DEVICE.type][op]]
)
def test_op(benchmark, op, backend):
    case = prepared(op)
    with torch.inference_mode():
        assert case.difference(backend) is None
        benchmark.pedantic(case.calls[backend], rounds=ROUNDS, warmup_rounds=5)
        case.reset()
