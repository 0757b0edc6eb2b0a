"""Sixteen requests together against one at a time: what continuous batching is worth here.

`pytest bench/test_throughput.py --benchmark-only`. Nothing is asserted about time; the table at the
end (bench/conftest.py) gives tokens per second, for greedy decoding and for ARGS.
"""

import pytest
import torch

from args_fast import DecodingConfig
from args_fast.bench.models import random_pair

REQUESTS = 16
NEW_TOKENS = 32
LENGTHS = [16, 32, 64, 128]  # in turn
ROUNDS = 3
OPTIONS = {"max_new_tokens": NEW_TOKENS, "eos_token_ids": []}
CONFIGS = {
    "args-fast greedy": DecodingConfig(k=1, **OPTIONS),
    "args-fast ARGS": DecodingConfig(k=10, w=1.5, **OPTIONS),
}


@pytest.fixture(scope="module")
def pair():
    return random_pair("opt-125m", "opt-125m")


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(5, 50000, (LENGTHS[i % len(LENGTHS)],), generator=generator).tolist()
        for i in range(REQUESTS)
    ]


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize("case", CONFIGS)
def test_requests(benchmark, pair, case, together):
    config = CONFIGS[case]

    def decode():
        if together:
            return pair.generate(prompts(), config)
        return [pair.generate(prompt, config)[0] for prompt in prompts()]

    benchmark.extra_info.update(
        throughput=case, together=together, tokens=REQUESTS * NEW_TOKENS, requests=REQUESTS
    )
    results = benchmark.pedantic(decode, rounds=ROUNDS, warmup_rounds=1)
    assert [len(result.token_ids) for result in results] == [NEW_TOKENS] * REQUESTS
