"""A second language model's log-probabilities, or one reward per token, as rewards: against a naive
decoder that runs the model over each candidate's whole text."""

import copy

import oracle
import pytest
import torch
import transformers as t
from recorded import record
from refusals import refuses
from second_models import log_probability, reward_lm, table, value
from tiny_models import ORDERS, decoder, language_model, reward_model, tokens
from traffic import MARGIN, run, scheduler, sequence

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import (
    ConfigError,
    LengthError,
    PairMismatchError,
    ProofError,
    UnsupportedModelError,
)
from args_fast.rewards import Autoregressive, Vocabulary


def compare(reward, naive, *, order="cpu", w=1.5, k=5, temperature=None, prompts=None):
    reward.name = "second"
    reward.attach(decoder().engine.lm, None)
    options = dict(ORDERS[order])
    recorded = options.pop("recorded", False)
    engine = scheduler(rewards={"second": reward}, pages=60, rows=8, **options)
    if recorded:
        record(engine)
    options = {"k": k, "w": w, "temperature": temperature}
    prompts = prompts or [tokens(n, seed=n) for n in (1, 17, 30)]
    ones = [
        sequence(prompt, weights={"second": 1.0}, max_new_tokens=10, **options)
        for prompt in prompts
    ]
    run(engine, *ones)
    for one in ones:
        expected = oracle.decode(language_model(), naive, one.prompt, steps=10, **options)
        assert expected.margin > MARGIN
        assert one.error is None, one.error
        result = one.generation()
        assert result.token_ids == expected.tokens
        assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
        along = engine.rewards_along(one, result.token_ids)
        assert along == pytest.approx(expected.rewards, abs=1e-4)
    assert engine.pool.pages_in_use == 0


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "opt", "mistral", "gemma2", "gemma3", "qwen3", "gpt_neox", "gpt_oss"]
)
def test_log_probabilities_of_a_second_language_model(name):
    compare(Autoregressive(reward_lm(name)), log_probability(reward_lm(name)))


@pytest.mark.parametrize("model", [table("llama"), table("gpt2"), reward_lm("opt")])
def test_one_reward_per_token(model):
    compare(Vocabulary(model), value(model), w=0.5)


@pytest.mark.parametrize("order", sorted(ORDERS))
@pytest.mark.parametrize("temperature", [None, 0.8])
def test_every_order_of_work(order, temperature):
    naive = log_probability(reward_lm())
    compare(Autoregressive(reward_lm()), naive, order=order, temperature=temperature)


def test_prompts_of_every_length_around_a_page():
    naive = log_probability(reward_lm())
    prompts = [tokens(n, seed=3) for n in (1, 2, 15, 16, 17, 32)]
    compare(Autoregressive(reward_lm()), naive, prompts=prompts)


def test_a_larger_vocabulary_counts_in_the_normaliser():
    model = copy.deepcopy(reward_lm())
    torch.manual_seed(1)
    model.resize_token_embeddings(80)
    compare(Autoregressive(model), log_probability(model))


def test_a_decoder_takes_it_in_place_of_a_reward_model():
    pair = ArgsDecoder(language_model(), Autoregressive(reward_lm(), name="second"))
    config = DecodingConfig(k=4, max_new_tokens=6, eos_token_ids=[])
    (result,) = pair.generate(tokens(9), config)
    naive = log_probability(reward_lm())
    text = [*tokens(9), *result.token_ids]
    assert result.rewards == pytest.approx([naive(text[: 10 + i]) for i in range(6)], abs=1e-4)


# ---- refusals ------------------------------------------------------------------------------------


def test_a_smaller_vocabulary_is_refused():
    model = copy.deepcopy(reward_lm())
    model.resize_token_embeddings(40)
    with refuses(PairMismatchError, "61 ids", "knows 40"):
        ArgsDecoder(language_model(), Autoregressive(model))


def test_a_value_per_text_is_refused():
    with refuses(UnsupportedModelError, "shape (1, 1)", "rewards.Classifier"):
        ArgsDecoder(language_model(), Vocabulary(reward_model()))


def test_another_shape_of_head_is_refused():
    class Shuffled(t.LlamaForCausalLM):
        def forward(self, *args, **options):
            out = super().forward(*args, **options)
            out.logits = out.logits.cumsum(1)  # what a text's last token does not determine
            return out

    model = Shuffled(reward_lm().config).eval()
    model.load_state_dict(reward_lm().state_dict())
    with pytest.raises(ProofError):
        ArgsDecoder(language_model(), Vocabulary(model))


def test_training_mode_is_refused():
    model = copy.deepcopy(reward_lm())
    pair = ArgsDecoder(language_model(), Autoregressive(model))
    model.train()
    with refuses(ConfigError, "training mode"):
        pair.generate(tokens(5), DecodingConfig(k=3, max_new_tokens=2))


def test_a_context_that_is_too_short_is_refused():
    config = copy.deepcopy(reward_lm().config)
    config.max_position_embeddings = 12
    model = t.LlamaForCausalLM(config).eval()
    pair = ArgsDecoder(language_model(), Autoregressive(model))
    with refuses(LengthError, "takes 12"):
        pair.generate(tokens(9), DecodingConfig(k=3, max_new_tokens=6))
    with refuses(LengthError, "15 tokens", "takes 12"):
        pair.token_rewards(tokens(9), tokens(6))


def test_name_is_the_models():
    assert Autoregressive(reward_lm()).name == "LlamaForCausalLM"
    assert Vocabulary(table(), name="mine").name == "mine"
