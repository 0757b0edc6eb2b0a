"""Every op of a step by every backend that is here, at its typical size: the heads of LLaMA-7B.

`make bench-steps`, or `pytest bench/test_ops.py --benchmark-only`. Each output is compared with the
plain one before it is timed. bench/ops_bench.py has many sizes, and peers from other libraries.
"""

import os
from functools import cache

import pytest
import torch

from args_fast.bench import cases, ops_cases
from args_fast.ops.backends import TABLE

DEVICE = torch.device(os.environ.get("ARGS_FAST_TEST_DEVICE", "cpu"))
ROUNDS = 50  # pages hold that many commits
TYPICAL: dict[str, ops_cases.Case] = {}
for case in ops_cases.cases(toy=cases.SIZE.startswith("tiny")):
    TYPICAL.setdefault(case.op, case)


@cache
def prepared(op):
    return ops_cases.prepare(TYPICAL[op], DEVICE)


@pytest.mark.parametrize(
    ("op", "backend"), [(op, backend) for op in TYPICAL for backend in TABLE[DEVICE.type][op]]
)
def test_op(benchmark, op, backend):
    case = prepared(op)
    with torch.inference_mode():
        assert case.difference(backend) is None
        benchmark.pedantic(case.calls[backend], rounds=ROUNDS, warmup_rounds=5)
        case.reset()
