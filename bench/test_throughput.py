"""Sixteen requests together against one at a time: what continuous batching is worth here.

`make bench`, or `pytest bench/test_throughput.py --benchmark-only`. Nothing is asserted about time.
"""

import pytest

from args_fast import DecodingConfig
from args_fast.bench import baselines
from args_fast.bench.cases import SIZE, Case

REQUESTS = 16
NEW_TOKENS = 32
LENGTHS = [16, 32, 64, 128]  # in turn
ROUNDS = 3
PROMPTS = [
    Case(SIZE, SIZE, prompt=LENGTHS[i % len(LENGTHS)]).prompts(500)[0] for i in range(REQUESTS)
]


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize("way", ["alone", "together"])
@pytest.mark.parametrize(("method", "k"), [(baselines.GREEDY, 1), (baselines.ARGS, 10)])
def test_requests(benchmark, pair, method, k, way):
    config = DecodingConfig(k=k, max_new_tokens=NEW_TOKENS, eos_token_ids=[])

    def decode():
        if way == "together":
            return pair.generate(PROMPTS, config)
        return [pair.generate(prompt, config)[0] for prompt in PROMPTS]

    benchmark.group = method
    benchmark.extra_info.update(way=way, tokens=REQUESTS * NEW_TOKENS)
    results = benchmark.pedantic(decode, rounds=ROUNDS, warmup_rounds=1)
    assert [len(result.token_ids) for result in results] == [NEW_TOKENS] * REQUESTS
