"""Weighted sums of rewards, as given and as each request asks, against a naive decoder."""

import made_up_rewards
import oracle
import pytest
from refusals import refuses
from second_models import log_probability, reward_lm
from tiny_models import language_model, reward_model, tokens
from traffic import MARGIN

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError
from args_fast.rewards import Autoregressive, Classifier, Mixture

NAIVE = {
    "model": lambda ids: oracle.reward(reward_model("opt"), ids),
    "second": log_probability(reward_lm()),
    "host": made_up_rewards.liking,
}


def parts():
    return [
        Classifier(reward_model("opt"), name="model"),
        Autoregressive(reward_lm(), name="second"),
        made_up_rewards.OnHost(poisons=False),
    ]


def along(shares, text, start):
    """The weighted sum after every id from ``start`` on."""
    return [
        sum(weight * NAIVE[name](text[:end]) for name, weight in shares.items())
        for end in range(start + 1, len(text) + 1)
    ]


def check(pair, asked, shares, temperature=None):
    """A request that asks for ``asked`` is guided by these shares, and reports each raw value."""
    options = {"k": 5, "w": 1.5, "temperature": temperature}
    config = DecodingConfig(max_new_tokens=8, eos_token_ids=[], reward=asked, **options)
    (result,) = pair.generate(tokens(9), config)
    expected = oracle.decode(
        language_model(),
        lambda ids: along(shares, ids, len(ids) - 1)[0],
        tokens(9),
        steps=8,
        **options,
    )
    assert expected.margin > MARGIN
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
    text = [*tokens(9), *result.token_ids]
    if len(shares) > 1:
        assert sorted(result.rewards_by_name) == sorted(shares)
        for name, values in result.rewards_by_name.items():
            assert values == pytest.approx(along({name: 1.0}, text, 9), abs=1e-4)
    return text


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_a_mixture_stands_for_the_reward_model(temperature):
    shares = {"model": 0.5, "second": -0.25, "host": 2.0}
    mixture = Mixture(list(zip(parts(), shares.values(), strict=True)))
    pair = ArgsDecoder(language_model(), mixture)
    text = check(pair, None, shares, temperature)
    expected = pytest.approx(along(shares, text, 9), abs=1e-4)
    assert pair.token_rewards(tokens(9), text[9:]) == expected
    check(pair, "second", {"second": 1.0}, temperature)
    check(pair, {"host": -1.0, "model": 2.0}, {"host": -1.0, "model": 2.0}, temperature)
    check(pair, {"mixture": 0.5, "model": 1.0}, {"model": 1.25, "second": -0.125, "host": 1.0})


def test_a_mixture_among_rewards_by_name():
    model, second, host = parts()
    kind = Mixture([(model, 0.5), (Mixture([(second, 2.0)], names=["second"]), 0.25)])
    pair = ArgsDecoder(language_model(), {"kind": kind, "host": host})
    check(pair, None, {"model": 0.5, "second": 0.5, "host": 1.0})
    check(pair, "kind", {"model": 0.5, "second": 0.5})
    check(pair, {"kind": 2.0, "model": -1.0}, {"second": 1.0})


def test_a_reward_may_be_in_several_mixtures():
    model, second, _ = parts()
    members = {"a": Mixture([(model, 1.0), (second, 1.0)]), "b": Mixture([(model, -0.5)])}
    pair = ArgsDecoder(language_model(), members | {"model": model})
    assert list(pair.engine.panel.rewards) == ["model", "second"]
    check(pair, None, {"model": 1.5, "second": 1.0})
    check(pair, "b", {"model": -0.5})


def test_a_model_is_a_part_under_the_name_it_is_given():
    pair = ArgsDecoder(language_model(), Mixture([(reward_model("opt"), 1.0)], names=["model"]))
    check(pair, None, {"model": 1.0})
    check(pair, "model", {"model": 1.0})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "needs parts"),
        (([3],), "(reward, weight)"),
        (([(made_up_rewards.OnHost(), "much")],), "finite number"),
        (([(made_up_rewards.OnHost(), float("nan"))],), "finite number"),
        (([(made_up_rewards.OnHost(), 1), (made_up_rewards.OnHost(), 2)],), "names=["),
        (([(made_up_rewards.OnHost(), 1)], ["a", "b"]), "2 entries for 1 rewards"),
    ],
)
def test_what_a_mixture_refuses(arguments, words):
    with refuses(ConfigError, words):
        Mixture(*arguments)


def test_names_that_clash_are_refused():
    mixture = Mixture([(made_up_rewards.OnHost(), 1.0)])
    with refuses(ConfigError, "'host'", "names=[...]"):
        ArgsDecoder(language_model(), {"host": made_up_rewards.OnHost(), "b": mixture})
    pair = ArgsDecoder(language_model(), mixture)
    with refuses(ConfigError, "reward names 'kind'", "mixture, host"):
        pair.generate(tokens(3), DecodingConfig(reward="kind"))
