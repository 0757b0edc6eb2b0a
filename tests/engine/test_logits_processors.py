"""Logits processors in the engine: the reference's tokens, and at k = 1 those of generate."""

import asyncio
import copy

import pytest
import torch
from refusals import refuses
from tiny_models import language_model, reward_model, tokens
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from args_fast import ArgsDecoder, AsyncArgsDecoder, DecodingConfig, rewards
from args_fast.errors import ConfigError
from args_fast.reference import decode

NEW = 8
PROMPTS = [tokens(9), tokens(4, seed=1), tokens(17, seed=2)]
RULES = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "sequence_bias": {"sequence_bias": [[[5], 2.5], [[7, 9], 4.0]]},
    "min_new_tokens": {"min_new_tokens": 4, "eos_token_id": [5, 7, 9, 11]},
    "forced_eos_token_id": {"forced_eos_token_id": 7},  # all other candidates have log p = -inf
}


def model(**settings):
    lm = copy.deepcopy(language_model())
    lm.generation_config.eos_token_id = None
    for name, value in settings.items():
        setattr(lm.generation_config, name, value)
    return lm


def reference(lm, rm, prompt, config, choice="model"):
    return decode(lm, rm, prompt, config, choice).token_ids


@pytest.mark.parametrize("temperature", [None, 0.8])
@pytest.mark.parametrize("rule", RULES)
def test_rules_of_the_model_are_obeyed(rule, temperature):
    lm, rm = model(**RULES[rule]), reward_model()
    decoder = ArgsDecoder(lm, rm, logits_processor="model")
    configs = [
        DecodingConfig(k=5, w=1.5, max_new_tokens=NEW, temperature=temperature, seed=3),
        DecodingConfig(k=1, max_new_tokens=NEW),
        DecodingConfig(k=3, w=0, max_new_tokens=NEW - 1),
    ]
    results = decoder.generate(PROMPTS, configs)
    for prompt, config, result in zip(PROMPTS, configs, results, strict=True):
        assert result.token_ids == reference(lm, rm, prompt, config)


@pytest.mark.parametrize("rule", RULES)
def test_one_candidate_is_generate(rule):
    lm = model(**RULES[rule])
    asked = torch.tensor([PROMPTS[0]])
    mask = torch.ones_like(asked)
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
    expected = lm.generate(asked, **options)[0, len(PROMPTS[0]) :].tolist()
    decoder = ArgsDecoder(lm, reward_model(), logits_processor="model")
    (result,) = decoder.generate(PROMPTS[0], DecodingConfig(k=1, max_new_tokens=NEW))
    assert result.token_ids == expected


def test_log_probabilities_are_those_of_the_processed_logits():
    lm, rm = model(repetition_penalty=1.7), reward_model()
    config = DecodingConfig(k=4, w=1.0, max_new_tokens=NEW)
    (result,) = ArgsDecoder(lm, rm, logits_processor="model").generate(PROMPTS[0], config)
    expected = decode(lm, rm, PROMPTS[0], config, "model")
    assert result.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
    plain = decode(lm, rm, PROMPTS[0], config)
    assert plain.token_ids != expected.token_ids


def test_a_head_on_the_language_model():
    """The head's proposer reads ahead: the token just chosen is not among the request's ids yet."""
    lm = model(no_repeat_ngram_size=1)
    head = torch.nn.Linear(lm.config.hidden_size, 1)
    decoder = ArgsDecoder(lm, rewards.Head(head), logits_processor="model")
    config = DecodingConfig(k=5, w=2.0, max_new_tokens=2 * NEW)

    @torch.no_grad()
    def naive(texts):
        states = [lm.base_model(torch.tensor([text])).last_hidden_state[0, -1] for text in texts]
        return [head(state).item() for state in states]

    results = decoder.generate(PROMPTS, config)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.token_ids == reference(lm, naive, prompt, config)
        assert len(set(result.token_ids)) == len(result.token_ids)


def test_processors_of_ones_own_and_as_a_stream():
    lm, rm = model(), reward_model()
    config = DecodingConfig(k=4, w=1.0, max_new_tokens=NEW)
    free = reference(lm, rm, PROMPTS[0], config, None)
    own = LogitsProcessorList([SuppressTokensLogitsProcessor([free[0], free[2]])])
    decoder = ArgsDecoder(lm, rm, logits_processor=own)
    streamed = [token.token_id for token in decoder.stream(PROMPTS[0], config)]
    assert streamed == reference(lm, rm, PROMPTS[0], config, own) != free


def test_a_processor_that_raises_ends_its_request_alone():
    lm, rm = model(), reward_model()

    def faulty(ids, scores):
        if ids.shape[1] > 11:
            raise ZeroDivisionError("a fault of one's own")
        return scores

    decoder = ArgsDecoder(lm, rm, logits_processor=[faulty])
    short, long = tokens(4), tokens(10)
    config = DecodingConfig(k=3, max_new_tokens=6)
    with pytest.raises(ZeroDivisionError, match="one's own"):
        decoder.generate([short, long], config)
    (alone,) = decoder.generate(short, config)
    assert alone.token_ids == reference(lm, rm, short, config, None)
    assert decoder.cache.pages_in_use == 0


async def _obeys():
    lm, rm = model(no_repeat_ngram_size=1), reward_model()
    config = DecodingConfig(k=4, max_new_tokens=NEW)
    async with AsyncArgsDecoder(ArgsDecoder(lm, rm, logits_processor="model")) as decoder:
        (result,) = await decoder.generate(PROMPTS[1], config)
    assert result.token_ids == reference(lm, rm, PROMPTS[1], config)


def test_the_async_decoder_obeys_too():
    asyncio.run(asyncio.wait_for(_obeys(), 60))


def test_another_choice_is_refused_before_work():
    with refuses(ConfigError, "logits_processor is 5"):
        ArgsDecoder(model(), reward_model(), logits_processor=5)


def test_a_rule_about_end_tokens_has_no_effect_without_any():
    lm, rm = model(exponential_decay_length_penalty=(2, 1.5)), reward_model()
    config = DecodingConfig(k=4, w=1.0, max_new_tokens=NEW, eos_token_ids=[])
    (result,) = ArgsDecoder(lm, rm, logits_processor="model").generate(PROMPTS[0], config)
    assert result.token_ids == reference(lm, rm, PROMPTS[0], config, None)


def test_a_value_that_no_rule_takes_is_a_sentence():
    lm = model(repetition_penalty=-1.0)
    with pytest.warns(UserWarning, match="repetition_penalty"):
        ArgsDecoder(lm, reward_model())
    decoder = ArgsDecoder(lm, reward_model(), logits_processor="model")
    with refuses(ConfigError, "generation_config cannot be obeyed", "-1.0", "leave out"):
        decoder.generate(PROMPTS[0], DecodingConfig(k=2, max_new_tokens=2))


def test_stop_strings_of_the_model_are_named():
    with pytest.warns(UserWarning, match=r"stop_strings = \['END'\].*DecodingConfig\(stop"):
        ArgsDecoder(model(stop_strings=["END"]), reward_model())
