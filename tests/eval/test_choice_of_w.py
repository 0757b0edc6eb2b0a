"""A range of w is suggested by what it would change, gain and cost along the greedy text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_decoder import naive_tiny_decoder, tiny_models

from args_fast import DecodingConfig
from args_fast.errors import EvaluationError
from args_fast.eval.tune import PRICES, Step, point_at, steps_of, suggest

PROMPT = "\n\nHuman: How do I grow mint?\n\nAssistant:"
STEPS = [Step((-0.1, -2.0, -3.0), (0.0, 1.0, -1.0)), Step((-0.5, -1.0, -1.5), (0.0, 2.0, 2.5))]


def test_the_first_w_that_changes_a_choice_is_where_the_scores_meet():
    assert STEPS[0].first_w() == pytest.approx(1.9)
    assert STEPS[1].first_w() == pytest.approx(0.25)
    assert Step((-0.1, -2.0), (1.0, 0.5)).first_w() == math.inf


@pytest.mark.parametrize("step", STEPS)
def test_the_choice_changes_there(step):
    assert step.choice(step.first_w() * 0.999) == 0
    assert step.choice(step.first_w() * 1.001) != 0


def test_points_are_means_over_the_steps():
    point = point_at(STEPS, 0.3)  # the second step alone takes its second candidate
    assert point.changed == 0.5
    assert point.price == pytest.approx(math.exp(0.5 / 2))
    assert point.gain == pytest.approx((2.0 / 2) / ((1.0 + 2.5) / 2))
    assert point_at(STEPS, 0.0).price == 1
    assert point_at(STEPS, 1e6).gain == pytest.approx(1)


candidates = st.lists(st.tuples(st.floats(-20, -0.01), st.floats(-5, 5)), min_size=2, max_size=6)


def a_step(rows):
    ordered = sorted(rows, key=lambda row: -row[0])
    return Step(*(tuple(column) for column in zip(*ordered, strict=True)))


@given(
    st.lists(candidates.map(a_step), min_size=1, max_size=6), st.floats(0.01, 100), st.floats(1, 50)
)
def test_price_and_gain_rise_with_w(steps, w, factor):
    one, more = point_at(steps, w), point_at(steps, w * factor)
    assert one.price <= more.price * (1 + 1e-9)
    assert one.gain <= more.gain + 1e-9
    assert 0 <= one.gain <= 1 + 1e-9
    assert one.price >= 1


@given(st.lists(candidates.map(a_step), min_size=1, max_size=6), st.sampled_from([0.01, 1, 1000]))
def test_the_suggestion_follows_the_rewards_scale(steps, scale):
    scaled = [Step(s.logprobs, tuple(scale * r for r in s.rewards)) for s in steps]
    for name in PRICES:
        one, other = suggest(steps)[name], suggest(scaled)[name]
        assert (one is None) == (other is None)
        if one is not None:
            assert other["w"] * scale == pytest.approx(one["w"], rel=1e-4)


@given(st.lists(candidates.map(a_step), min_size=1, max_size=6))
def test_suggested_weights_cost_no_more_than_they_may(steps):
    found = suggest(steps)
    chosen = [found[name] for name in PRICES if found[name] is not None]
    assert [point["w"] for point in chosen] == sorted(point["w"] for point in chosen)
    for name, price in PRICES.items():
        if found[name] is not None:
            assert found[name]["price"] <= price + 1e-9
            assert point_at(steps, found[name]["w"] * 1e9).price > price


def test_rewards_that_do_not_differ_suggest_nothing():
    found = suggest([Step((-0.1, -2.0), (1.0, 1.0))])
    assert (found["ratio"], found["start"], found["curve"]) == (None, None, [])
    assert found["changeable"] == 0


def test_steps_are_those_of_the_greedy_text():
    decoder = naive_tiny_decoder()
    steps, failed = steps_of(decoder, [PROMPT], k=4, max_new_tokens=9)
    (greedy,) = decoder.generate([PROMPT], DecodingConfig(k=1, w=0.0, max_new_tokens=9))
    assert failed == 0
    assert [step.logprobs[0] for step in steps] == pytest.approx(greedy.logprobs, abs=1e-5)
    for t, step in enumerate(steps):
        texts = [
            [*greedy.token_ids[:t], token]
            for token in _candidates(decoder, greedy.prompt_token_ids + greedy.token_ids[:t])
        ]
        assert list(step.rewards) == pytest.approx(decoder.rewards([PROMPT] * 4, texts), abs=1e-5)


def _candidates(decoder, ids):
    config = DecodingConfig(k=4, w=0.0, max_new_tokens=1, return_candidates=True)
    (result,) = decoder.generate([ids], config)
    return [candidate.token_id for candidate in result.candidates[0]]


@pytest.mark.parametrize(
    ("k", "longest", "says"),
    [
        (1, 500, "k is 1; a choice needs at least 2"),
        (4, 2, "no prompt could be decoded: .* too many"),
    ],
)
def test_steps_of_says_what_is_wrong(k, longest, says):
    with pytest.raises(EvaluationError, match=says):
        steps_of(naive_tiny_decoder(longest=longest), [PROMPT], k=k, max_new_tokens=3)


def test_prompts_that_cannot_be_decoded_are_counted():
    length = len(tiny_models()[2](PROMPT).input_ids)
    decoder = naive_tiny_decoder(longest=length + 3)
    steps, failed = steps_of(decoder, [PROMPT, PROMPT * 2], k=2, max_new_tokens=3)
    assert (len(steps), failed) == (3, 1)
