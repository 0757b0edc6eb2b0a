"""The slowdown of ARGS against greedy decoding, in one process, on this machine.

`make bench`, or `pytest bench/test_slowdown.py --benchmark-only`. Nothing is asserted about time.
Every method decodes n new tokens and one, which tell its step and its first token apart
(bench/slowdown.py); the table at the end (bench/conftest.py) has both, and the slowdown against
both greedies. With --benchmark-json=FILE the times are kept, with machine and versions.
"""

from functools import cache

import pytest

from args_fast.bench import baselines
from args_fast.bench.cases import SIZE, USUAL, Case
from args_fast.bench.models import random_pair

ROUNDS = 5
METHODS = (*USUAL, baselines.K_COPIES, baselines.NAIVE)


@cache
def pair(name):
    return random_pair(name, name)


@pytest.mark.parametrize("prompt_length", [128, 512])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["whole", "first"])
def test_decode(benchmark, method, prompt_length, part):
    case = Case(SIZE, SIZE, prompt=prompt_length, new_tokens=32)
    new_tokens = case.tokens_of(method) if part == "whole" else 1
    benchmark.extra_info.update(
        method=method, prompt=prompt_length, part=part, new_tokens=case.tokens_of(method)
    )
    (tokens,) = benchmark.pedantic(
        baselines.METHODS[method],
        args=(pair(case.lm), case.prompts(500), new_tokens, case.k, case.w),
        rounds=baselines.MOST_ROUNDS.get(method, ROUNDS),
        warmup_rounds=baselines.warm_ups(method),
    )
    assert len(tokens) == new_tokens
