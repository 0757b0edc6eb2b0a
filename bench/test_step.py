"""One decode step after a stored prompt: a token of the language model, and of ARGS with few and
with many candidates.

`make bench-steps`, or `pytest bench/test_step.py --benchmark-only`. A round is one token of a
stream (on the CPU, where a burst is one step); the prompt is stored before the first. Nothing is
asserted about time.
"""

from contextlib import closing

import pytest

from args_fast import DecodingConfig
from args_fast.bench.cases import Case
from args_fast.bench.models import random_pair

ROUNDS = 15


@pytest.fixture(scope="module")
def pair():
    return random_pair("opt-125m", "opt-125m")


@pytest.mark.parametrize("prompt_length", [128, 512])
@pytest.mark.parametrize("k", [1, 2, 10, 40])
def test_step(benchmark, pair, k, prompt_length):
    (prompt,) = Case("opt-125m", "opt-125m", prompt=prompt_length).prompts(50000)
    config = DecodingConfig(k=k, max_new_tokens=ROUNDS + 3, eos_token_ids=[])
    with closing(pair.stream(prompt, config)) as stream:
        next(stream)
        token = benchmark.pedantic(next, args=(stream,), rounds=ROUNDS, warmup_rounds=1)
    assert token.finish_reason is None
