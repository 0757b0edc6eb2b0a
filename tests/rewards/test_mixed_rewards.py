"""Rewards that read ids of their own, live on the host, or read the language model's hidden states,
in one engine with the classifier: each request gets the tokens that it gets alone."""

import made_up_rewards
import pytest
from hypothesis import Phase, settings
from refusals import refuses
from sizes import examples
from tiny_models import decoder, language_model, reward_model, tokens
from traffic import LONGEST, REWARD, Traffic, assert_as_alone, check, run, scheduler, sequence

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import RewardError

KINDS = (
    REWARD,
    {"host": 1.0},
    {"own": 1.0},
    {"hidden": 1.0},
    {"reward": 0.5, "host": 2.0},
    {"own": -1.0, "hidden": 1.5, "reward": 1.0},
)


@pytest.fixture(scope="module")
def rewards():
    made = {
        "reward": decoder().engine.panel.rewards["reward"],
        "host": made_up_rewards.OnHost(),
        "own": made_up_rewards.OwnIds(reward_model("opt"), name="own"),
        "hidden": made_up_rewards.OnHidden(),
    }
    for reward in made.values():
        reward.attach(decoder().engine.lm, None)
    return made


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_each_kind_alone_is_the_oracles(rewards, kind, temperature):
    engine = scheduler(rewards=rewards, pages=40)
    options = {"k": 5, "temperature": temperature, "max_new_tokens": 10}
    (one,) = run(engine, sequence(tokens(19), weights=KINDS[kind], **options))
    assert_as_alone(one)
    assert all(pool.pages_in_use == 0 for pool in engine.scheduler.pools)


def test_a_row_that_fails_ends_its_request_alone(rewards):
    engine = scheduler(rewards=rewards, pages=40)
    poisoned = sequence([made_up_rewards.REFUSED, 5, 6], weights={"host": 1.0})
    others = [sequence(tokens(9, seed=i), weights=KINDS[i]) for i in range(4)]
    for one in (poisoned, *others):
        engine.submit(one)
    while engine.busy:
        engine.step()
        check(engine)
    assert isinstance(poisoned.error, RewardError)
    assert poisoned.tokens == []
    for one in others:
        assert_as_alone(one)


class Broken(made_up_rewards.OnHost):
    """Raises where others give a number."""

    def open(self, request):
        if request.prompt[0] == 5:
            raise ValueError("not this one")

    def judge(self, memory, store):
        raise ZeroDivisionError("made up")


def test_an_exception_ends_the_requests_of_that_reward_only(rewards):
    engine = scheduler(rewards=rewards | {"host": Broken()}, pages=40)
    refused = sequence([5, 6], weights={"host": 1.0})
    broken = sequence([6, 6], weights={"host": 1.0})
    other = sequence(tokens(9))
    for one in (refused, broken, other):
        engine.submit(one)
    while engine.busy:
        engine.step()
    assert isinstance(refused.error, ValueError)
    assert isinstance(broken.error, ZeroDivisionError)
    assert_as_alone(other)
    assert engine.pool.pages_in_use == 0


class MixedTraffic(Traffic):
    kinds = KINDS
    longest = LONGEST - len(made_up_rewards.PREFIX)
    figures = dict.fromkeys(Traffic.figures, 0)


def test_any_interleaving_of_any_rewards_gives_each_request_its_own_tokens(rewards):
    MixedTraffic.rewards = rewards
    case = MixedTraffic.TestCase()
    case.settings = settings(
        stateful_step_count=20, max_examples=examples(12), phases=[Phase.generate]
    )
    case.runTest()
    figures = MixedTraffic.figures
    print(figures)
    assert figures["discarded"] <= figures["requests"] * 0.1
    for figure in ("requests", "preempted", "shared", "cancelled", "waited", "failed"):
        assert figures[figure] > 2, figure


def test_a_decoder_takes_rewards_by_name(rewards):
    own = made_up_rewards.OwnIds(reward_model("opt"))
    arithmetic = made_up_rewards.OnHost(poisons=False)
    pair = ArgsDecoder(language_model(), {"judge": own, "arithmetic": arithmetic})
    config = DecodingConfig(k=4, max_new_tokens=6, eos_token_ids=[])
    (result,) = pair.generate(tokens(9), config)
    both = result.rewards_by_name
    assert sorted(both) == ["arithmetic", "judge"]
    total = [a + b for a, b in zip(both["arithmetic"], both["judge"], strict=True)]
    assert result.rewards == pytest.approx(total, abs=1e-5)
    assert pair.token_rewards(tokens(9), result.token_ids) == pytest.approx(total, abs=1e-4)


def test_candidates_are_reported_with_the_bits_of_the_choice(rewards):
    engine = scheduler(rewards=rewards, pages=40)
    for weights in KINDS:
        plain, full = (
            sequence(tokens(9), weights=weights, k=4, return_candidates=wanted)
            for wanted in (False, True)
        )
        run(engine, plain)
        run(engine, full)
        assert plain.ids == full.ids
        assert [t.reward for t in plain.tokens] == [t.reward for t in full.tokens]
        for token in full.tokens:
            chosen = next(c for c in token.candidates if c.token_id == token.token_id)
            assert chosen.reward == token.reward
            assert len(token.candidates) == 4
            best = max(token.candidates, key=lambda c: c.score)
            assert best.token_id == token.token_id
        assert all(t.candidates is None for t in plain.tokens)


def test_an_empty_mapping_of_rewards_is_refused():
    with refuses(ValueError, "empty mapping"):
        ArgsDecoder(language_model(), {})
