"""The claim of the project: the engine's tokens are the naive decoder's, whatever is asked."""

import dataclasses
import functools
import math

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import MUTANTS
from sizes import examples
from tiny_models import (
    CONFIGS,
    ORDERS,
    REWARD_CONFIGS,
    VOCABULARY,
    decoder,
    language_model,
    reward_model,
    tokens,
)

from args_fast import DecodingConfig, ops, reference
from args_fast.models.branches import Branches
from args_fast.ops import backends

MARGIN = 1e-5  # closer alternatives than this may go either way in float32
STEPS = 8
BACKENDS = sorted(backends.TABLE["cpu"]["branch_attention"])


@dataclasses.dataclass(frozen=True)
class Case:
    lm: str = "llama"
    rm: str = "llama"
    layers: tuple = (2, 2)
    hidden: tuple = (32, 32)
    prompts: tuple = (17, 1, 30)  # their lengths
    prompt_seed: int = 5
    k: int = 7
    w: float = 1.5
    temperature: float | None = None
    seed: int = 0
    ends_at: int | None = None  # the step of the first prompt whose token ends sequences
    backend: str | None = None
    order: str = "cpu"
    fused: bool = True  # the layers of a tail as one op, where there is one

    @property
    def pair(self):
        return decoder(self.lm, self.rm, self.layers, self.hidden, self.order)

    def texts(self):
        return [tokens(n, seed=self.prompt_seed + i) for i, n in enumerate(self.prompts)]

    def expected(self):
        """The oracle's decodes without an end, and the end tokens."""
        decodes = oracles(
            dataclasses.replace(self, backend=None, order="cpu", fused=True, ends_at=None)
        )
        return decodes, [] if self.ends_at is None else [decodes[0].tokens[self.ends_at]]

    def decodes(self, eos=()):
        """The engine's."""
        pair = self.pair
        for backbone in (pair.engine.lm, pair.engine.panel.rewards["reward"].backbone):
            backbone.fused = self.fused
        with ops.use_backend(self.backend):
            return pair.generate(self.texts(), self.config(list(eos)))

    def config(self, eos):
        options = {"k": self.k, "w": self.w, "temperature": self.temperature, "seed": self.seed}
        return DecodingConfig(max_new_tokens=STEPS, eos_token_ids=eos, **options)


@functools.lru_cache(maxsize=64)
def oracles(case):
    pair = case.pair
    options = {"k": case.k, "w": case.w, "temperature": case.temperature, "seed": case.seed}
    return [
        oracle.decode(pair.language_model, pair.reward_model, text, steps=STEPS, **options)
        for text in case.texts()
    ]


def sizes(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


CASES = st.builds(
    Case,
    lm=st.sampled_from(sorted(CONFIGS)),
    rm=st.sampled_from(REWARD_CONFIGS),
    layers=sizes(1, 3),
    hidden=sizes(2, 3).map(lambda pair: (16 * pair[0], 16 * pair[1])),
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    prompt_seed=st.integers(0, 99),
    k=st.sampled_from([1, 2, 3, 10, 40, VOCABULARY]),
    w=st.sampled_from([0.0, 0.5, 1.5, -2.0, 30.0, 1e-3]) | st.floats(-10, 10, width=32),
    temperature=st.none() | st.sampled_from([0.3, 0.7, 2.0]),
    seed=st.integers(0, 2**63 - 1),
    ends_at=st.sampled_from([None, 0, 3, STEPS - 1]),
    backend=st.sampled_from(BACKENDS),
    order=st.sampled_from([*sorted(ORDERS), "drafted"]),
    fused=st.booleans(),
)


def assert_equal(result, wanted, eos):
    """That a generation is the oracle's decode up to the first end token."""
    ends = [i + 1 for i, token in enumerate(wanted.tokens) if token in eos]
    length = ends[0] if ends else STEPS
    assert result.token_ids == wanted.tokens[:length]
    assert result.finish_reason == ("eos" if ends else "length")
    for field in ("logprobs", "rewards", "scores"):
        got, naive = getattr(result, field), getattr(wanted, field)[:length]
        assert got == pytest.approx(naive, abs=1e-4, rel=1e-4, nan_ok=True), field


def test_engine_equals_both_oracles():
    drawn, discarded, ended_apart = 0, 0, 0

    @settings(max_examples=examples(40))
    @given(CASES)
    def check(case):
        nonlocal drawn, discarded, ended_apart
        drawn += 1
        expected, eos = case.expected()
        if min(one.margin for one in expected) < MARGIN:
            discarded += 1
            return
        pair, config = case.pair, case.config(eos)
        results = case.decodes(eos)
        for result, wanted in zip(results, expected, strict=True):
            assert_equal(result, wanted, eos)
        # The reference takes candidates one by one, the oracle those of a step together.
        text = case.texts()[0]
        printed = reference.decode(pair.language_model, pair.reward_model, text, config)
        assert_equal(printed, expected[0], eos)
        ended_apart += len({len(result.token_ids) for result in results}) > 1
        assert pair.cache.pages_in_use == 0

    check()
    print(f"{drawn} cases, {discarded} discarded, in {ended_apart} sequences ended apart")
    assert drawn >= 33
    assert discarded <= drawn * 0.1
    assert ended_apart >= drawn * 0.1


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_architecture_proposes_as_the_oracle_does(name):
    check_pair(Case(lm=name))


@pytest.mark.parametrize("name", REWARD_CONFIGS)
def test_every_architecture_judges_as_the_oracle_does(name):
    check_pair(Case(rm=name))


@pytest.mark.parametrize("order", ["cpu", "captured ahead"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "opt", "gpt2"])
def test_modules_decode_as_the_oracle_does(name, order):
    for options in ({}, {"temperature": 0.7, "seed": 3}):
        check_pair(Case(lm=name, rm=name, order=order, fused=False, **options))


NAMES = ["llama", "gemma2", "gpt_oss", "opt"]
WAYS = [{}, {"temperature": 0.7, "seed": 3}, {"k": 1}, {"ends_at": 2}]
ALL_ORDERS = [*sorted(ORDERS), "drafted"]


@pytest.mark.parametrize("order", ALL_ORDERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_decodes_as_the_oracle_does(backend, order):
    # Each order meets every model and every way, over the orders each pair of the two.
    turn = ALL_ORDERS.index(order)
    for i, name in enumerate(NAMES):
        way = WAYS[(i + turn) % len(WAYS)]
        check_pair(Case(lm=name, rm=name, backend=backend, order=order, **way))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_architecture_looks_ahead_as_the_oracle_does(name):
    check_pair(Case(lm=name, order="ahead"))


def check_pair(case):
    expected, eos = case.expected()
    assert min(one.margin for one in expected) > MARGIN
    results = case.decodes(eos)
    for result, wanted in zip(results, expected, strict=True):
        assert_equal(result, wanted, eos)


# ---- the comparison can fail ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CONFIGS))
@torch.no_grad()
def test_the_models_are_worth_comparing(name):
    # In a model with small random weights attention hardly matters, and any engine is right. Here
    # an early token moves everything after it, and the candidates differ.
    lm = language_model(name)
    text = torch.tensor([tokens(6), tokens(6)])
    text[1, 0] = 3 + (text[0, 0] + 20) % (VOCABULARY - 3)
    one, other = lm(text).logits[:, -1].log_softmax(dim=-1)
    assert one.std() > 0.5
    assert (one - other).abs().max() > 0.1
    assert (one.exp() - other.exp()).abs().sum() > 0.05
    if name in REWARD_CONFIGS:
        rm = reward_model(name)
        one, other = rm.score(rm.base_model(text).last_hidden_state[:, -1])[:, 0]
        assert (one - other).abs() > 0.05
        texts = torch.tensor([[*tokens(6), v] for v in range(VOCABULARY)])
        assert rm.score(rm.base_model(texts).last_hidden_state[:, -1]).std() > 0.5


def differs(results, expected):
    """Whether a comparison with the oracle would notice."""
    try:
        for result, wanted in zip(results, expected, strict=True):
            assert_equal(result, wanted, ())
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(("op", "mutant", "name"), MUTANTS, ids=lambda x: getattr(x, "__name__", x))
def test_a_broken_engine_is_caught(monkeypatch, op, mutant, name):
    case = Case(lm=name, rm=name, backend="torch")
    check_pair(case)
    expected, _ = case.expected()
    table = backends.TABLE["cpu"]
    monkeypatch.setitem(table[op], "torch", mutant)
    parts = (table[part]["torch"] for part in ("select", "commit"))
    monkeypatch.setitem(table["select_commit"], "torch", backends._select_then_commit(*parts))
    results = case.decodes()
    assert differs(results, expected)
    wrong = [r.token_ids != e.tokens for r, e in zip(results, expected, strict=True)]
    assert any(wrong)  # not only the numbers: what somebody reads is another text


# The fused layers read prompts as tails too, and where all positions are shifted, rotary ones are
# as far apart as before: there it takes a model whose positions are embeddings.
@pytest.mark.parametrize(("name", "fused"), [("llama", False), ("opt", True)])
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_position_is_caught(monkeypatch, shift, name, fused):
    case = Case(lm=name, rm=name, fused=fused, prompts=(17, 8, 30))
    expected, _ = case.expected()
    positions = Branches.positions
    monkeypatch.setattr(Branches, "positions", lambda tail, *dtype: positions(tail, *dtype) + shift)
    results = case.decodes()
    assert differs(results, expected)


def test_a_neighbours_noise_is_caught(monkeypatch):
    case = Case(temperature=2.0, seed=3)
    check_pair(case)
    expected, _ = case.expected()
    noise = DecodingConfig.noise
    monkeypatch.setattr(DecodingConfig, "noise", lambda config: noise(config).roll(1, dims=0))
    assert differs(case.decodes(), expected)


def test_what_the_comparison_sees_is_what_it_says():
    case = Case()
    expected, _ = case.expected()
    results = case.decodes()
    assert not differs(results, expected)
    for field in ("logprobs", "rewards", "scores"):
        off = [x + 1e-3 for x in getattr(results[1], field)]
        assert differs(
            [results[0], dataclasses.replace(results[1], **{field: off}), results[2]], expected
        )
    assert differs(results[::-1], expected)
    assert not math.isnan(results[0].rewards[0])
