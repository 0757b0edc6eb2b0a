"""The slowdown of ARGS against greedy decoding, in one process, on this machine.

`make bench`, or `pytest bench/test_slowdown.py --benchmark-only`. Nothing is asserted about time:
the table at the end (bench/conftest.py) gives each case's median and the slowdown against both
greedies. With --benchmark-json=FILE the same figures are kept, with machine and versions.
"""

import pytest
import torch

from args_fast import DecodingConfig
from args_fast.bench.models import random_pair

NEW_TOKENS = 32
K = 10
ROUNDS = 7


@pytest.fixture(scope="module")
def pair():
    return random_pair("opt-125m", "opt-125m")


def transformers_greedy(pair, ids):
    lm = pair.language_model
    prompt = torch.tensor([ids])
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    return lambda: lm.generate(prompt, do_sample=False, **length)[0, len(ids) :].tolist()


def decoder(config):
    def make(pair, ids):
        return lambda: pair.generate(ids, config)[0].token_ids

    return make


CASES = {
    "transformers greedy": transformers_greedy,
    "args-fast greedy": decoder(DecodingConfig(k=1, max_new_tokens=NEW_TOKENS, eos_token_ids=[])),
    "args-fast ARGS": decoder(
        DecodingConfig(k=K, w=1.5, max_new_tokens=NEW_TOKENS, eos_token_ids=[])
    ),
}


@pytest.mark.parametrize("prompt_length", [128, 512])
@pytest.mark.parametrize("case", CASES)
def test_decode(benchmark, pair, case, prompt_length):
    generator = torch.Generator().manual_seed(prompt_length)
    ids = torch.randint(5, 50000, (prompt_length,), generator=generator).tolist()
    decode = CASES[case](pair, ids)
    benchmark.extra_info.update(case=case, prompt_length=prompt_length)
    tokens = benchmark.pedantic(decode, rounds=ROUNDS, warmup_rounds=1)
    assert len(tokens) == NEW_TOKENS
