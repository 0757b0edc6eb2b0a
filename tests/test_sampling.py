"""ARGS-stochastic (eq. 3): draws from softmax(s / tau) over V(k), and what decides them."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from tiny_models import decoder, language_model, reward_model, tokens

from args_fast import DecodingConfig, reference

DRAWS = 500
# The 99.9 % quantiles of chi-square: wrong one time in a thousand if the seeds were not fixed.
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}
PROMPT = tokens(9)


def candidates_and_scores(k, w):
    """V(k) and s, by transformers' own forward passes."""
    lm, rm = language_model(layers=1), reward_model(layers=1)
    with torch.no_grad():
        distribution = lm(torch.tensor([PROMPT])).logits[0, -1].log_softmax(dim=0)
        values, ids = distribution.topk(k)
        texts = torch.tensor([[*PROMPT, v] for v in ids.tolist()])
        r = rm.score(rm.model(texts).last_hidden_state[:, -1])[:, 0]
    return ids.tolist(), values + w * r


def chi_square(counts, probabilities):
    expected = np.asarray(probabilities, dtype=float) * sum(counts)
    kept = expected >= 5
    counts = [*np.asarray(counts)[kept], np.asarray(counts)[~kept].sum()]
    expected = [*expected[kept], expected[~kept].sum()]
    pairs = [(c, e) for c, e in zip(counts, expected, strict=True) if e > 0]
    return sum((c - e) ** 2 / e for c, e in pairs), len(pairs) - 1


@functools.cache
def draw(k, w, temperature):
    pair = decoder(layers=(1, 1))
    config = DecodingConfig(k=k, w=w, temperature=temperature, max_new_tokens=1, eos_token_ids=[])
    seeds = (dataclasses.replace(config, seed=seed) for seed in range(DRAWS))
    return [pair.generate(PROMPT, each)[0].token_ids[0] for each in seeds]


@pytest.mark.parametrize(("k", "w", "temperature"), [(5, 1.5, 2.0), (6, -1.0, 4.0), (4, 0.0, 3.0)])
def test_tokens_come_as_often_as_the_softmax_says(k, w, temperature):
    ids, scores = candidates_and_scores(k, w)
    probabilities = torch.softmax(scores.double() / temperature, dim=0)
    assert probabilities.max() < 0.9
    drawn = draw(k, w, temperature)
    assert set(drawn) <= set(ids)
    statistic, freedom = chi_square([drawn.count(v) for v in ids], probabilities)
    assert freedom >= 2
    assert statistic < CHI_SQUARE[freedom]
    # The comparison can fail: the scores divided by another temperature do not fit.
    other = torch.softmax(scores.double() / (temperature * 3), dim=0)
    assert chi_square([drawn.count(v) for v in ids], other)[0] > CHI_SQUARE[freedom]


def test_the_whole_sum_is_divided_by_the_temperature():
    # Not the logprob alone: softmax(log p / tau + w * r) is another distribution.
    k, w, temperature = 5, 1.5, 2.0
    ids, scores = candidates_and_scores(k, w)
    _, logprobs = candidates_and_scores(k, 0.0)
    wrong = torch.softmax(logprobs.double() / temperature + (scores - logprobs).double(), dim=0)
    drawn = draw(k, w, temperature)
    statistic, freedom = chi_square([drawn.count(v) for v in ids], wrong)
    assert statistic > CHI_SQUARE[max(1, freedom)]


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_seed_decides(name):
    pair = decoder(name, name)
    config = DecodingConfig(k=20, temperature=5.0, max_new_tokens=25, eos_token_ids=[])
    runs = [
        pair.generate(PROMPT, dataclasses.replace(config, seed=seed))[0].token_ids
        for seed in (0, 1, 2, 2**63 - 1, 0)
    ]
    assert runs[0] == runs[4]
    assert len({tuple(run) for run in runs}) == 4


def test_global_randomness_is_neither_used_nor_changed():
    pair = decoder()
    config = DecodingConfig(k=20, temperature=5.0, max_new_tokens=9, eos_token_ids=[])
    torch.manual_seed(1)
    (first,) = pair.generate(PROMPT, config)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(2)
    assert pair.generate(PROMPT, config) == [first]


def test_a_request_draws_the_same_alone_and_in_a_batch():
    pair = decoder()
    config = DecodingConfig(k=20, temperature=5.0, max_new_tokens=25, seed=6, eos_token_ids=[])
    batch = pair.generate([tokens(30, seed=1), PROMPT, tokens(1)], config)
    assert batch[1].token_ids == pair.generate(PROMPT, config)[0].token_ids
    assert batch[1].token_ids == list(
        reference.decode(language_model(), reward_model(), PROMPT, config).token_ids
    )


def test_a_longer_request_begins_like_a_shorter_one_with_the_same_seed():
    pair = decoder()
    config = DecodingConfig(k=20, temperature=5.0, max_new_tokens=25, seed=6, eos_token_ids=[])
    (long,) = pair.generate(PROMPT, config)
    (short,) = pair.generate(PROMPT, dataclasses.replace(config, max_new_tokens=7))
    assert short.token_ids == long.token_ids[:7]


def test_a_small_temperature_is_the_argmax():
    pair = decoder()
    config = DecodingConfig(k=7, max_new_tokens=20, eos_token_ids=[])
    (expected,) = pair.generate(PROMPT, config)
    for seed in range(3):
        cold = dataclasses.replace(config, temperature=1e-4, seed=seed)
        assert pair.generate(PROMPT, cold)[0].token_ids == expected.token_ids


def test_a_large_temperature_draws_every_candidate_alike():
    ids, _ = candidates_and_scores(5, 1.5)
    drawn = draw(5, 1.5, 1e6)
    statistic, freedom = chi_square([drawn.count(v) for v in ids], [0.2] * 5)
    assert freedom == 4
    assert statistic < CHI_SQUARE[4]


def test_one_candidate_leaves_nothing_to_draw():
    pair = decoder()
    config = DecodingConfig(k=1, temperature=5.0, max_new_tokens=12, eos_token_ids=[])
    greedy = dataclasses.replace(config, temperature=None)
    assert pair.generate(PROMPT, config)[0].token_ids == pair.generate(PROMPT, greedy)[0].token_ids
