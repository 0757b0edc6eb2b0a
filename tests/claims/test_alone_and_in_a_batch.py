"""The claim: a prompt gets the same tokens alone and in a batch, whatever runs next to it."""

import pytest
from tiny_models import decoder, tokens

from args_fast import DecodingConfig

PAIRS = [("llama", "llama"), ("opt", "gpt2"), ("mistral", "qwen2")]
PROMPTS = [tokens(length, seed=length) for length in (3, 17, 33, 9, 16)]
CONFIGS = [
    DecodingConfig(k=10, w=1.5, max_new_tokens=20, eos_token_ids=[]),
    DecodingConfig(k=3, w=4.0, max_new_tokens=3, eos_token_ids=[]),
    DecodingConfig(k=1, max_new_tokens=12, eos_token_ids=[]),
    DecodingConfig(k=7, temperature=0.8, seed=5, max_new_tokens=9, eos_token_ids=[]),
    DecodingConfig(k=4, w=0, temperature=1.2, seed=2, max_new_tokens=15, eos_token_ids=[]),
]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_prompt_gets_the_tokens_that_it_gets_alone(pair):
    both = decoder(*pair)
    alone = [both.generate(p, c)[0].token_ids for p, c in zip(PROMPTS, CONFIGS, strict=True)]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        prompts, configs = [PROMPTS[i] for i in order], [CONFIGS[i] for i in order]
        together = [result.token_ids for result in both.generate(prompts, configs)]
        assert together == [alone[i] for i in order]


def test_a_stream_that_joins_and_one_that_leaves_change_nothing():
    pair = decoder()
    alone = pair.generate(PROMPTS[0], CONFIGS[0])[0].token_ids
    watched, leaving = (pair.stream(PROMPTS[i], CONFIGS[i]) for i in (0, 3))
    got = [next(watched).token_id for _ in range(3)]
    next(leaving)
    got += [next(watched).token_id for _ in range(3)]
    leaving.close()
    got += [token.token_id for token in watched]
    assert got == alone
