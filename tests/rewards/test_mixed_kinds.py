"""Rewards of text and of a second language model in one engine with the classifier and one that
fails now and then: each request gets the tokens that it gets alone, whatever happens around it."""

import functools

import made_up_rewards
import pytest
import torch
from encoders import decoder_classifier, encoder, own_forward
from hypothesis import Phase, settings
from second_models import log_probability, reward_lm, table, value
from sizes import examples
from tiny_models import decoder
from traffic import LONGEST, NAIVE, REWARD, Traffic
from vocabularies import byte_level, unigram, wordpiece

from args_fast.rewards import Autoregressive, Function, Text, Vocabulary

KINDS = (
    REWARD,
    {"text": 1.0},
    {"encoder": 2.0},
    {"second": 1.0},
    {"text": 1.0, "table": 0.5, "reward": 1.0},
    {"host": 1.0, "function": 3.0},
)


@functools.cache
def decoded(text):
    """A prompt given as ids is decoded as its response is, so only the whole text matters here."""
    whole = byte_level().decode(list(text), skip_special_tokens=True)
    return whole.rstrip("\ufffd")


def vowels(prompts, responses):
    texts = [(p + r).rstrip("\ufffd") for p, r in zip(prompts, responses, strict=True)]
    return [sum(x in "aeiou" for x in text) / max(1, len(text)) for text in texts]


def whole(model, tokenizer):
    return lambda text: own_forward(model, tokenizer, decoded(tuple(text)))


@pytest.fixture(scope="module")
def rewards():
    made = {
        "reward": decoder().engine.panel.rewards["reward"],
        "text": Text(decoder_classifier("gpt2"), unigram(), name="text"),
        "encoder": Text(encoder("bert"), wordpiece(), name="encoder"),
        "second": Autoregressive(reward_lm("opt"), name="second"),
        "table": Vocabulary(table(), name="table"),
        "host": made_up_rewards.OnHost(),
        "function": Function(vowels, name="function"),
    }
    for reward in made.values():
        reward.attach(decoder().engine.lm, byte_level())
    return made


@pytest.fixture
def naive(monkeypatch):
    for name, function in {
        "text": whole(decoder_classifier("gpt2"), unigram()),
        "encoder": whole(encoder("bert"), wordpiece()),
        "second": log_probability(reward_lm("opt")),
        "table": value(table()),
        "function": lambda text: vowels([decoded(tuple(text))], [""])[0],
    }.items():
        monkeypatch.setitem(NAIVE, name, function)


class MixedTraffic(Traffic):
    kinds = KINDS
    longest = LONGEST
    figures = dict.fromkeys(Traffic.figures, 0)


def test_any_interleaving_gives_each_request_its_own_tokens(rewards, naive):
    torch.manual_seed(0)
    MixedTraffic.rewards = rewards
    case = MixedTraffic.TestCase()
    case.settings = settings(
        stateful_step_count=12, max_examples=examples(5), phases=[Phase.generate]
    )
    case.runTest()
    figures = MixedTraffic.figures
    print(figures)
    assert figures["discarded"] <= figures["requests"] * 0.1
    for figure in ("requests", "preempted", "cancelled", "waited"):
        assert figures[figure] > 0, figure
    assert not rewards["text"]._cached._stored  # every request gave its memory back
