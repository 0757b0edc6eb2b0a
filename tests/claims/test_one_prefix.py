"""The claim: the cache holds a prefix once, not k times, and a step reads one row of the language
model and k of the reward model."""

import pytest
from passes import rows_of
from tiny_models import decoder, tokens

from args_fast import DecodingConfig

NEW = 6


@pytest.mark.parametrize("k", [2, 10, 40])
def test_a_step_reads_one_row_and_k_rows(k):
    pair = decoder()
    config = DecodingConfig(k=k, max_new_tokens=NEW, eos_token_ids=[])
    (read, lm_hook), (rewards, rm_hook) = rows_of(pair.language_model), rows_of(pair.reward_model)
    try:
        pair.generate(tokens(30, seed=k), config)
    finally:
        lm_hook.remove()
        rm_hook.remove()
    assert read == [29] + [1] * NEW
    # The prompt's last token is read as part of the first step's k texts, or with the prompt.
    assert sum(rewards[:-NEW]) in (29, 30)
    assert rewards[-NEW:] == [k] * NEW


@pytest.mark.parametrize("k", [2, 40])
def test_pages_are_those_of_one_text(k):
    pair = decoder()
    config = DecodingConfig(k=k, max_new_tokens=2 * NEW, eos_token_ids=[])
    stream = pair.stream(tokens(33), config)
    held = []
    for _ in stream:
        held.append(pair.cache.pages_in_use)
    page = pair.cache.page_size
    assert max(held) <= -(-(33 + 2 * NEW) // page) + 1
    assert pair.cache.pages_in_use == 0
