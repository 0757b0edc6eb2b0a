"""top_p, min_p, rewards by name and ids that a reward does not know: the choice among fewer than k
candidates, as a naive decoder makes it."""

import math

import pytest
import torch
from made_up_rewards import OnHost, liking
from refusals import refuses
from tiny_models import VOCABULARY, decoder, language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError
from args_fast.rewards import Classifier


def naive(prompt, config, reward, known=None):
    """Tokens of the paper's algorithm over the candidates that remain."""
    text, noise = list(prompt), config.noise()
    for step in range(config.max_new_tokens):
        with torch.no_grad():
            logprobs = language_model()(torch.tensor([text])).logits[0, -1].float().log_softmax(0)
        order = sorted(range(VOCABULARY), key=lambda v: (-logprobs[v].item(), v))
        order = [v for v in order if known is None or known[v]][: config.k]
        kept, total, best = [], 0.0, logprobs[order[0]].exp().item()
        for rank, v in enumerate(order):
            p = logprobs[v].exp().item()
            if rank == 0 or (
                (config.top_p is None or total < config.top_p)
                and (config.min_p is None or p >= config.min_p * best)
            ):
                kept.append((rank, v))
            total += p
        scores = [
            (logprobs[v].item() + config.w * reward([*text, v])) / (config.temperature or 1)
            + noise[step, rank].item()
            for rank, v in kept
        ]
        text.append(kept[scores.index(max(scores))][1])
    return text[len(prompt) :]


def of_model(text):
    with torch.no_grad():
        hidden = reward_model().base_model(torch.tensor([text])).last_hidden_state[0, -1]
        return reward_model().score(hidden).item()


@pytest.mark.parametrize("order", ["cpu", "ahead", "captured"])
@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize(
    "narrow", [{"top_p": 0.5}, {"min_p": 0.3}, {"top_p": 0.8, "min_p": 0.05}, {"top_p": 1e-6}]
)
def test_fewer_candidates_are_kept(narrow, temperature, order):
    config = DecodingConfig(
        k=9, w=2.0, temperature=temperature, max_new_tokens=10, eos_token_ids=[], **narrow
    )
    wide = DecodingConfig(k=6, w=2.0, max_new_tokens=12, eos_token_ids=[])
    prompts = [tokens(9), tokens(20, seed=1)]
    results = decoder(order=order).generate([*prompts, tokens(5)], [config, config, wide])
    for prompt, result in zip(prompts, results, strict=False):
        assert result.token_ids == naive(prompt, config, of_model)
    assert results[2].token_ids == naive(tokens(5), wide, of_model)


def test_only_kept_candidates_are_reported():
    config = DecodingConfig(
        k=9, top_p=0.5, max_new_tokens=8, eos_token_ids=[], return_candidates=True
    )
    (result,) = decoder().generate(tokens(9), config)
    for step in result.candidates:
        assert sum(math.exp(c.logprob) for c in step[:-1]) < 0.5
        assert all(math.isfinite(c.reward) for c in step)
    assert len({len(step) for step in result.candidates}) > 1


@pytest.mark.parametrize("field", ["top_p", "min_p"])
@pytest.mark.parametrize("value", [-0.1, 1.5, "0.5", math.nan])
def test_bad_values_are_refused(field, value):
    with refuses(ConfigError, f"{field} is"):
        DecodingConfig(**{field: value})


class Choosy(Classifier):
    """Knows only even ids."""

    def known_ids(self):
        return torch.arange(VOCABULARY) % 2 == 0


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_ids_that_mean_nothing_to_the_reward_are_not_candidates(temperature):
    pair = ArgsDecoder(language_model(), Choosy(reward_model()))
    config = DecodingConfig(
        k=8, w=2.0, temperature=temperature, max_new_tokens=10, eos_token_ids=[]
    )
    (result,) = pair.generate(tokens(9), config)
    known = [v % 2 == 0 for v in range(VOCABULARY)]
    assert result.token_ids == naive(tokens(9), config, of_model, known)
    logprob = language_model()(torch.tensor([tokens(9)])).logits[0, -1].log_softmax(0)
    assert result.logprobs[0] == pytest.approx(logprob[result.token_ids[0]].item(), abs=1e-5)


def test_each_request_is_guided_by_its_own_rewards():
    pair = ArgsDecoder(language_model(), {"model": reward_model(), "host": OnHost(poisons=False)})
    mixes = [None, "model", "host", {"model": 0.25, "host": -2.0}, {"host": 1.0, "model": 0.0}]
    configs = [
        DecodingConfig(k=6, w=1.5, max_new_tokens=9, eos_token_ids=[], reward=mix) for mix in mixes
    ]
    prompts = [tokens(9 + i, seed=i) for i in range(5)]
    results = pair.generate(prompts, configs)
    shares = [(1, 1), (1, 0), (0, 1), (0.25, -2.0), (0, 1)]
    for prompt, config, result, (a, b) in zip(prompts, configs, results, shares, strict=True):

        def total(text, a=a, b=b):
            return (a * of_model(text) if a else 0) + (b * liking(text) if b else 0)

        assert result.token_ids == naive(prompt, config, total)
        alone = pair.generate(prompt, config)[0]
        assert alone.token_ids == result.token_ids
    assert results[1].rewards_by_name is None
    assert sorted(results[3].rewards_by_name) == ["host", "model"]
    with refuses(ConfigError, "reward names 'kind'", "model, host"):
        pair.generate(tokens(3), DecodingConfig(reward="kind"))
    for bad in ({}, {"model": "much"}, 3):
        with refuses(ConfigError, "reward"):
            DecodingConfig(reward=bad)
