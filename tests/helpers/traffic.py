"""Requests that arrive, wait, run and are called off, and what each must get: its tokens alone."""

import functools
import math
from types import SimpleNamespace

import made_up_rewards
import oracle
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pools import check_pool
from tiny_models import decoder, language_model, reward_model, tokens

from args_fast import DecodingConfig
from args_fast.engine.engine import Engine
from args_fast.errors import RewardError
from args_fast.kvcache.storage import PAGE_SIZE

MARGIN = 1e-5  # closer alternatives than this may go either way in float32
LONGEST = 62  # tokens of a request at most
PAGES = 8  # two of the longest requests fit


REWARD = {"reward": 1.0}  # the classifier's name, and its weight
# Of a decoder that has an adapter, a head and another adapter too: each, and two on one model.
ADAPTED = ({"adapter": 1.0}, REWARD, {"adapter": 1.0, "reward": -1.0}, {"head": 1.0})
ADAPTED += ({"other": 1.0},)


def scheduler(pair=None, rewards=None, **options):
    """A small engine over a pair's models, or over other rewards."""
    pair = pair or decoder()
    options = {"pages": PAGES, "rows": 4} | options
    return Engine(pair.engine.lm, rewards or pair.engine.panel.rewards, **options)


def sequence(prompt, pair=None, weights=REWARD, **options):
    """A request, guided by the rewards of these weights."""
    config = DecodingConfig(**({"eos_token_ids": [], "max_new_tokens": 8} | options))
    (one,) = (pair or decoder())._encoder.requests(prompt, config)
    one.weights = dict(weights) if config.consults_reward else {}
    return one


# Each reward over a whole text, naively.
NAIVE = {
    "host": made_up_rewards.liking,
    "own": lambda text: made_up_rewards.naive_own_ids(reward_model("opt"), text),
    "hidden": lambda text: made_up_rewards.naive_hidden(language_model(), text),
}


def naive_reward(weights):
    """What the oracle is guided by: the classifier's model, or a function of a text."""
    if dict(weights) == REWARD:
        return reward_model()

    def total(texts):
        values = [(weight, of_all(name, texts)) for name, weight in weights]
        return [sum(weight * of[i] for weight, of in values) for i in range(len(texts))]

    def of_all(name, texts):
        return oracle.rewards(reward_model() if name == "reward" else NAIVE[name], texts)

    return SimpleNamespace(many=total)


@functools.cache
def alone(prompt, k, w, temperature, seed, steps, weights):
    options = {"k": k, "w": w, "temperature": temperature, "seed": seed, "steps": steps}
    return oracle.decode(language_model(), naive_reward(weights), list(prompt), **options)


def wanted(one):
    c, weights = one.config, tuple(one.weights.items()) or tuple(REWARD.items())
    return alone(tuple(one.prompt), c.k, c.w, c.temperature, c.seed, c.max_new_tokens, weights)


def assert_as_alone(one):
    expected = wanted(one)
    ends = [i + 1 for i, token in enumerate(expected.tokens) if token in one.end_tokens]
    length = ends[0] if ends else one.config.max_new_tokens
    if isinstance(one.error, RewardError):  # a row of a made-up reward that fails now and then
        assert "host" in one.weights
        assert made_up_rewards.poisoned(one)
        assert [t.token_id for t in one.tokens] == expected.tokens[: len(one.tokens)]
        return
    assert one.error is None, one.error
    assert one.finish_reason == ("eos" if ends else "length")
    result = one.generation()
    assert result.token_ids == expected.tokens[:length]
    for field in ("logprobs", "rewards", "scores"):
        naive = getattr(expected, field)[:length]
        assert getattr(result, field) == pytest.approx(naive, abs=1e-4, rel=1e-4, nan_ok=True)


def check(engine):
    """What is true after every operation."""
    everyone = engine.scheduler.everyone()
    assert len({id(one) for one in everyone}) == len(everyone)
    assert len(engine.scheduler.running) <= engine.scheduler.rows
    assert not any(one.finished for one in everyone)
    assert not any(one.pages for one in engine.scheduler.waiting)
    assert all(one.pages for one in everyone if one not in engine.scheduler.waiting)
    for group, pool in enumerate(engine.scheduler.pools):
        check_pool(pool, [one.texts[group].pages for one in everyone if group in one.texts])
    arrivals = [one.number for one in everyone if hasattr(one, "number")]
    assert arrivals == sorted(arrivals)  # those that came first are the furthest
    for one in engine.scheduler.running:
        # A page that others can find is full, and is not where the next row goes.
        assert one.texts[0].registered[0] * PAGE_SIZE <= len(one.ids) - 1
        for page in one.pages[one.texts[0].registered[0] :]:
            assert engine.pool.ref_count(page) == 1
    if not everyone:
        assert engine.pool.pages_in_use == 0


def run(engine, *sequences):
    for number, one in enumerate(sequences):
        one.number = number
        engine.submit(one)
    while engine.busy:
        engine.step()
        check(engine)
    return sequences


# ---- any interleaving ----------------------------------------------------------------------------

PREFIXES = [(), tuple(tokens(16, seed=1)), tuple(tokens(33, seed=2)), tuple(tokens(40, seed=2))]
STEPS = 40
FIGURES = {"requests": 0, "discarded": 0, "preempted": 0, "shared": 0, "cancelled": 0, "waited": 0}
FIGURES["failed"] = 0


class Traffic(RuleBasedStateMachine):
    """Requests of every kind arrive, are stepped, and are called off, in a pool that holds one or
    two of the longest.

    Attributes:
        kinds: weights of rewards to draw from.
        rewards: of the engine, in place of the pair's.
        longest: tokens of a request at most.
        figures: counts of what happened.
        drafts: of the engine.
    """

    kinds = (REWARD,)
    rewards = None
    longest = LONGEST
    figures = FIGURES
    drafts = None

    def __init__(self):
        super().__init__()
        self.engine = None
        self.requests = []
        self.count = 0

    @precondition(lambda self: self.engine is None)
    @rule(
        steps=st.sampled_from([1, 3, 8]),
        fill=st.sampled_from([5, 16, 64]),
        pages=st.sampled_from([4, 5, 5, 8]),
        padded=st.booleans(),
        in_flight=st.integers(0, 2),
        lookahead=st.sampled_from([0, 10, math.inf]),
        keep=st.booleans(),
        fused=st.booleans(),
    )
    def begin(self, keep, fused, **options):
        self.engine = scheduler(rewards=self.rewards, drafts=self.drafts, **options)
        for reader in (self.engine.lm, *self.engine.panel.rewards.values()):
            getattr(reader, "backbone", reader).fused = fused
        self.engine.hold_prefixes = keep

    @precondition(lambda self: self.engine)
    @rule(
        prefix=st.sampled_from(PREFIXES),
        more=st.lists(st.integers(3, 8), min_size=1, max_size=20),
        new=st.sampled_from([1, 2, 9, 17, 30, STEPS]),
        copies=st.integers(1, 3),
        k=st.sampled_from([1, 2, 5, 9]),
        w=st.sampled_from([0.0, 1.5, -2.0]),
        temperature=st.sampled_from([None, 0.7]),
        seed=st.integers(0, 3),
        ends=st.none() | st.integers(0, STEPS - 1),
        kind=st.integers(0, 5),
    )
    def arrive(self, copies, **drawn):
        for i in range(copies):
            self.arrive_alone(**(drawn | {"more": [9 + i, *drawn["more"]]}))

    def arrive_alone(self, prefix, more, new, k, w, temperature, seed, ends, kind):
        prompt = [*prefix, *more][: self.longest - new]
        weights = self.kinds[kind % len(self.kinds)]
        options = {"k": k, "w": w, "temperature": temperature, "seed": seed}
        one = sequence(prompt, weights=weights, max_new_tokens=new, **options)
        self.figures["requests"] += 1
        expected = wanted(one)
        if expected.margin < MARGIN:
            self.figures["discarded"] += 1
            return
        if ends is not None:
            one.end_tokens = frozenset([expected.tokens[ends % new]])
        self.count += 1
        one.number = self.count
        self.engine.submit(one)
        self.requests.append(one)

    @precondition(lambda self: self.requests)
    @rule(times=st.integers(1, 12))
    def go_on(self, times):
        for _ in range(times):
            self.engine.step()
            check(self.engine)
        self.figures["waited"] += self.engine.waiting
        for one in [one for one in self.requests if one.finished]:
            self.requests.remove(one)
            self.figures["failed"] += one.error is not None
            assert_as_alone(one)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), really=st.sampled_from([True, False, False]))
    def call_off(self, data, really):
        if not really:
            return
        one = data.draw(st.sampled_from(self.requests))
        self.requests.remove(one)
        held = len(one.pages)
        before = self.engine.pool.pages_in_use
        shared = sum(self.engine.pool.ref_count(page) > 1 for page in one.pages)
        self.engine.cancel(one)
        assert self.engine.pool.pages_in_use == before - held + shared
        self.figures["cancelled"] += 1

    @invariant()
    def books_are_kept(self):
        if self.engine:
            check(self.engine)

    def teardown(self):
        if self.engine is None:
            return
        while self.engine.busy:
            self.engine.step()
            check(self.engine)
        for one in self.requests:
            self.figures["failed"] += one.error is not None
            assert_as_alone(one)
        assert self.engine.pool.pages_in_use == 0
        self.figures["preempted"] += self.engine.stats.preemptions
        self.figures["shared"] += self.engine.stats.shared_tokens
