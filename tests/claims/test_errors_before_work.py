"""The claim: what cannot be decoded is an error that says what to do, before the first step."""

import copy

import pytest
import torch
from tiny_models import decoder, language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ArgsError, NonFiniteError


def long_text():
    decoder("gpt2", "gpt2").generate(tokens(9), DecodingConfig(max_new_tokens=10**6))


def unknown_id():
    decoder().generate([1, 2, 10**6])


def too_many_candidates():
    decoder().generate(tokens(3), DecodingConfig(k=129))


def text_without_a_tokenizer():
    decoder().generate("some text")


def an_unknown_reward():
    decoder().generate(tokens(3), DecodingConfig(reward="kindness"))


def two_outputs():
    rm = copy.deepcopy(reward_model())
    rm.score = torch.nn.Linear(rm.config.hidden_size, 2, bias=False)
    ArgsDecoder(language_model(), rm)


def no_language_model():
    ArgsDecoder(reward_model(), reward_model())


CASES = {
    long_text: "set max_new_tokens to at most 87",
    unknown_id: "is not a valid token id",
    too_many_candidates: "k is 129",
    text_without_a_tokenizer: "pass tokenizer=",
    an_unknown_reward: "this decoder's rewards are",
    two_outputs: "labels",
    no_language_model: "language model",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_error_names_what_is_wrong_and_the_way(case, monkeypatch):
    def works(*arguments, **options):
        pytest.fail("a token was decoded")

    monkeypatch.setattr("args_fast.engine.engine.Engine.step", works)
    with pytest.raises(ArgsError) as caught:
        case()
    assert CASES[case] in str(caught.value)


def test_a_reward_that_is_not_a_number_is_never_a_choice():
    rm = copy.deepcopy(reward_model())
    rm.score.weight.data.fill_(float("inf"))
    with pytest.raises(ArgsError) as caught:
        ArgsDecoder(language_model(), rm).generate(tokens(5), DecodingConfig(max_new_tokens=2))
    assert isinstance(caught.value, NonFiniteError) or "weights" in str(caught.value)
