"""The slowdown of ARGS against greedy decoding, in one process, on this machine.

`make bench`, or `pytest bench/test_slowdown.py --benchmark-only`. Nothing is asserted about time:
the table at the end (bench/conftest.py) gives each case's median per token and the slowdown against
both greedies. With --benchmark-json=FILE the same figures are kept, with machine and versions. The
two slow baselines have fewer rounds, and the one with no cache decodes 2 tokens: a step of it takes
seconds, and as it has no prefill its tokens cost the same however many there are. `args-fast bench`
measures more, with the prompt's time apart.
"""

import pytest
import torch

from args_fast.bench import baselines
from args_fast.bench.models import random_pair

K, W = 10, 1.5
# method: new tokens, rounds, warm-up rounds
CASES = {
    baselines.TRANSFORMERS: (32, 5, 1),
    baselines.GREEDY: (32, 5, 1),
    baselines.ARGS: (32, 5, 1),
    baselines.K_COPIES: (32, 2, 0),
    baselines.NAIVE: (2, 1, 0),
}


@pytest.fixture(scope="module")
def pair():
    return random_pair("opt-125m", "opt-125m")


@pytest.mark.parametrize("prompt_length", [128, 512])
@pytest.mark.parametrize("case", CASES)
def test_decode(benchmark, pair, case, prompt_length):
    new_tokens, rounds, warm_up = CASES[case]
    generator = torch.Generator().manual_seed(prompt_length)
    prompt = torch.randint(5, 50000, (prompt_length,), generator=generator).tolist()
    decode = baselines.METHODS[case]
    benchmark.extra_info.update(case=case, prompt_length=prompt_length, new_tokens=new_tokens)
    (tokens,) = benchmark.pedantic(
        decode, args=(pair, [prompt], new_tokens, K, W), rounds=rounds, warmup_rounds=warm_up
    )
    assert len(tokens) == new_tokens
