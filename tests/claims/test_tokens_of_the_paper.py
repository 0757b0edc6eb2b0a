"""The claim: in float32 the tokens are those of the paper's algorithm, written naively.

The oracle recomputes every candidate's whole text with the models' own forward passes and shares no
code with the package.
"""

import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import decoder, language_model, reward_model, tokens

from args_fast import DecodingConfig

PAIRS = [("llama", "llama"), ("opt", "gpt2"), ("qwen3", "mistral"), ("gemma2", "gpt_neox")]
STEPS = 6


@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    k=st.integers(1, 12),
    w=st.sampled_from([0.0, 0.5, 1.5, -2.0, 30.0]),
    temperature=st.sampled_from([None, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_tokens_and_rewards_are_the_algorithms(pair, lengths, k, w, temperature, seed):
    lm, rm = language_model(pair[0]), reward_model(pair[1])
    prompts = [tokens(length, seed=seed + i) for i, length in enumerate(lengths)]
    options = {"k": k, "w": w, "temperature": temperature, "seed": seed}
    config = DecodingConfig(max_new_tokens=STEPS, eos_token_ids=[], **options)
    for prompt, result in zip(prompts, decoder(*pair).generate(prompts, config), strict=True):
        expected = oracle.decode(lm, rm, prompt, steps=STEPS, **options)
        if expected.margin < 1e-5:
            continue  # two choices closer than float32 can tell apart
        assert result.token_ids == expected.tokens
        assert result.rewards == pytest.approx(expected.rewards, abs=1e-4, nan_ok=True)
        assert result.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
