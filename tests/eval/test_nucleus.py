"""Nucleus sampling draws from the nucleus, as often as the probabilities say, and by its seed."""

from collections import Counter

import pytest
import torch
from tiny_models import VOCABULARY, language_model, tokens

from args_fast.eval.nucleus import nucleus_sampling

PROMPT = tokens(6)


def draw(seed, count=1, p=1.0, temperature=1.0):
    drawn = []

    def enough(token):
        drawn.append(token)
        return len(drawn) == count

    options = {"p": p, "temperature": temperature, "seeds": [seed], "enough": [enough]}
    found = nucleus_sampling(language_model(), [PROMPT], **options)
    assert found == [drawn]
    return drawn


def after(count):
    left = iter(range(count - 1, -1, -1))
    return lambda token: next(left) == 0


@torch.inference_mode()
def probabilities(temperature=1.0):
    logits = language_model()(torch.tensor([PROMPT])).logits[0, -1]
    return (logits / temperature).softmax(dim=-1)


def test_the_smallest_nucleus_is_greedy():
    expected, text = [], list(PROMPT)
    with torch.inference_mode():
        for _ in range(8):
            expected.append(int(language_model()(torch.tensor([text])).logits[0, -1].argmax()))
            text.append(expected[-1])
    assert draw(seed=3, count=8, p=1e-6) == expected


def test_a_seed_gives_its_tokens_whatever_was_drawn_before():
    alone = draw(seed=5, count=10)
    torch.rand(7)
    draw(seed=6, count=10)
    assert draw(seed=5, count=10) == alone
    assert draw(seed=6, count=10) != alone


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "opt"])
def test_a_batch_gives_each_prompt_its_own_tokens(name):
    lengths = {9: 12, 3: 5, 14: 8}  # of prompts, of their responses
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]

    def run(places):
        counts = [list(lengths.values())[place] for place in places]
        return nucleus_sampling(
            language_model(name),
            [prompts[place] for place in places],
            p=0.9,
            temperature=1.0,
            seeds=[7 + place for place in places],
            enough=[after(count) for count in counts],
        )

    together = run([0, 1, 2])
    assert [len(response) for response in together] == list(lengths.values())
    assert together == [run([place])[0] for place in range(3)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_stay_within_the_nucleus(temperature):
    ordered, ids = probabilities(temperature).sort(descending=True)
    before = ordered.cumsum(dim=0) - ordered
    nucleus = set(ids[before < 0.6].tolist())
    assert 1 < len(nucleus) < VOCABULARY
    drawn = {draw(seed, p=0.6, temperature=temperature)[0] for seed in range(80)}
    assert drawn <= nucleus
    assert len(drawn) > 1


def test_draws_are_as_frequent_as_the_probabilities_say():
    count = 400
    frequencies = Counter(draw(seed)[0] for seed in range(count))
    expected = probabilities()
    likeliest = int(expected.argmax())
    share, p = frequencies[likeliest] / count, float(expected[likeliest])
    assert abs(share - p) < 4 * (p * (1 - p) / count) ** 0.5
