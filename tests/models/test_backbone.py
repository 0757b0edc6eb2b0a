"""One model under the engine: the rows that are run, and what it stays outside."""

import copy

import pytest
import torch
from passes import rows_of
from tiny_models import CONFIGS, decoder, language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.models.backbone import Backbone

CONFIG = DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[])


@pytest.mark.parametrize("prompt", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("k", [2, 9])
def test_a_step_costs_one_row_and_k_rows_and_a_prompt_is_stored_once(prompt, k):
    # Prefix caches that work on blocks run the last, partial block again for every candidate.
    pair = decoder()
    (lm, lm_hook), (rm, rm_hook) = rows_of(pair.language_model), rows_of(pair.reward_model)
    try:
        pair.generate(tokens(prompt), DecodingConfig(k=k, max_new_tokens=20, eos_token_ids=[]))
    finally:
        lm_hook.remove()
        rm_hook.remove()
    assert rm == [prompt] + [k] * 20
    assert lm == [prompt - 1] * (prompt > 1) + [1] * 20


def test_the_models_stay_usable_while_the_engine_has_them():
    pair = ArgsDecoder(copy.deepcopy(language_model()), copy.deepcopy(reward_model()))
    text = torch.tensor([tokens(9)])
    stream = pair.stream(tokens(9), CONFIG)
    next(stream)
    for mine, untouched in (
        (pair.language_model, language_model()),
        (pair.reward_model, reward_model()),
    ):
        assert mine.config._attn_implementation == untouched.config._attn_implementation
        assert torch.equal(mine(text).logits, untouched(text).logits)
    stream.close()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_layout_is_what_the_attention_sends(name):
    lm = Backbone(language_model(name), "language model")
    config = lm.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert lm.layout.layers == config.num_hidden_layers == 2
    assert lm.layout.kv_heads == heads
    assert lm.layout.dtype == torch.float32
