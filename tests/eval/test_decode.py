"""Whatever the method: one response for each prompt, ended where it should be."""

import pytest
import torch
from naive_decoder import naive_tiny_decoder, tiny_models

from args_fast import DecodingConfig
from args_fast.errors import LengthError
from args_fast.eval.cuts import keep_tokens
from args_fast.eval.decode import Limits, decode
from args_fast.eval.methods import parse

PROMPT = "\n\nHuman: How do I grow mint?\n\nAssistant:"
OTHER = "\n\nHuman: How do I fix a slow speaker?\n\nAssistant:"
METHODS = [
    "greedy",
    "top-k",
    "nucleus",
    "contrastive",
    "best-of-n:n=3",
    "args-greedy",
    "args-stochastic",
]


def respond(written, prompts=(PROMPT,), limits=None, decoder=None, seed=3):
    requests = [(prompt, seed) for prompt in prompts]
    found = decode(decoder or naive_tiny_decoder(), parse(written), requests, limits or Limits(10))
    return dict(found)


@pytest.mark.parametrize("written", METHODS)
def test_every_method_answers_each_prompt_by_its_seed(written):
    both = respond(written, (PROMPT, OTHER))
    assert sorted(both) == [0, 1]
    tokenizer = tiny_models()[2]
    for index, prompt in enumerate((PROMPT, OTHER)):
        response = both[index]
        assert response.prompt_token_ids == tokenizer(prompt).input_ids
        assert 1 <= len(response.token_ids) <= 10
        assert tokenizer.decode(response.token_ids, skip_special_tokens=True) == response.text
        assert respond(written, (prompt,)) == {0: response}


@pytest.mark.parametrize("written", METHODS)
def test_endless_responses_have_all_their_tokens(written):
    limits = Limits(12, endless=True)
    short = "\n\nHuman: Thanks!\n\nAssistant: You are welcome."
    (response,) = respond(written, (short,), limits).values()
    assert len(response.token_ids) == 12


@pytest.mark.parametrize("written", METHODS)
def test_a_stop_string_ends_the_text_before_it(written):
    (response,) = respond(written, limits=Limits(40, stop=(".",))).values()
    assert "." not in response.text
    assert response.finish_reason in ("stop", "length")
    if response.finish_reason == "stop":
        assert "." in tiny_models()[2].decode(response.token_ids)


@pytest.mark.parametrize("written", METHODS)
def test_a_prompt_that_is_too_long_is_an_error_of_its_own(written):
    found = respond(written, (PROMPT * 3, PROMPT), decoder=naive_tiny_decoder(longest=40))
    assert isinstance(found[0], LengthError)
    assert found[1].text


def test_own_loops_check_the_language_models_length():
    found = respond("nucleus", (PROMPT * 30,), Limits(300))
    assert isinstance(found[0], LengthError)
    assert "takes 512 together" in str(found[0])


def test_contrastive_cannot_have_more_candidates_than_tokens():
    lm, _, _ = tiny_models()
    decoder = naive_tiny_decoder()
    decoder.language_model = _Small(lm)
    found = respond("contrastive:k=8", decoder=decoder)
    assert "the vocabulary has 5 tokens" in str(found[0])


class _Small:
    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, *inputs, **options):
        return self._model(*inputs, **options)

    def get_input_embeddings(self):
        return torch.nn.Embedding(5, 2)


@pytest.mark.parametrize("stop", [(), (".",)])
def test_best_of_n_is_the_sample_with_the_highest_reward(stop):
    decoder = naive_tiny_decoder()
    (best,) = respond("best-of-n:n=6,temperature=1.5", limits=Limits(24, stop=stop)).values()
    config = DecodingConfig(
        k=40, w=0.0, temperature=1.5, num_return_sequences=6, seed=3, max_new_tokens=24, stop=stop
    )
    samples = decoder.generate([PROMPT], config)
    kept = [keep_tokens(decoder.tokenizer, s.token_ids, s.text) for s in samples]
    rewards = decoder.rewards([PROMPT] * 6, kept)
    assert len(set(rewards)) > 1
    assert best.text == samples[rewards.index(max(rewards))].text


def test_a_conversation_is_a_prompt_too():
    turn = [{"role": "user", "content": "How do I grow mint?"}]
    for written in ("greedy", "contrastive"):
        (response,) = respond(written, (turn,)).values()
        assert "grow mint" in tiny_models()[2].decode(response.prompt_token_ids)


@pytest.mark.parametrize("written", ["nucleus:temperature=0.5", "contrastive"])
def test_a_stop_string_that_is_a_special_token_ends_an_own_loop(written, monkeypatch):
    decoder = naive_tiny_decoder()
    end = decoder.tokenizer.eos_token
    monkeypatch.setattr(decoder.language_model.generation_config, "eos_token_id", None)
    found = respond(written, limits=Limits(150, stop=(end,)), decoder=decoder)
    (response,) = found.values()
    assert response.finish_reason == "stop"
    assert response.token_ids[-1] == decoder.tokenizer.eos_token_id
