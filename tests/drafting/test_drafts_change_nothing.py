"""Whatever is drafted, each request gets the oracle's tokens: perfect drafts, blind ones, wrong
ones at the worst place, and those of every real drafter."""

import dataclasses
import functools

import lora
import oracle
import pytest
import torch
import traffic
from drafters import REAL, SCRIPTS, Scripted, adversarial, make, perfect
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sizes import examples
from tiny_models import REWARD_CONFIGS, decoder, language_model, tokens
from traffic import ADAPTED, REWARD, Traffic, alone, assert_as_alone, run, scheduler, sequence

from args_fast import ArgsDecoder
from args_fast.engine import verify
from args_fast.models.branches import Branches
from args_fast.rewards import Adapter

MARGIN = 1e-5
STEPS = 10
NAMES = [*SCRIPTS, *REAL]
FIGURES = dict.fromkeys(traffic.FIGURES, 0)

# Rewards on the language model itself: on its weights, merged into a model, on its hidden states.
ON_THE_LM = ["adapter", "merged adapter", "head"]


@functools.cache
def on_the_lm(name, kind):
    """A decoder, and the reward of a text, naively: an adapter's by peft, without merging."""
    lm = language_model(name)
    if kind == "head":
        made, naive = lora.head_on(lm)
    else:
        model = lora.adapted(lm, **({} if kind == "adapter" else {"use_dora": True}))
        made, naive = Adapter(model, name="reward"), lora.of_text(model)
    pair = ArgsDecoder(lm, {"reward": made})
    assert kind == "head" or made.shares_weights == (kind == "adapter")
    return pair, naive


@dataclasses.dataclass(frozen=True)
class Case:
    lm: str = "llama"
    rm: str = "llama"
    prompts: tuple = (17, 1, 30)
    prompt_seed: int = 5
    k: int = 7
    w: float = 1.5
    temperature: float | None = None
    seed: int = 0
    ends_at: int | None = None
    fused: bool = True

    @property
    def pair(self):
        return on_the_lm(self.lm, self.rm)[0] if self.rm in ON_THE_LM else decoder(self.lm, self.rm)

    @property
    def naive_reward(self):
        return on_the_lm(self.lm, self.rm)[1] if self.rm in ON_THE_LM else self.pair.reward_model

    def texts(self):
        return [tokens(n, seed=self.prompt_seed + i) for i, n in enumerate(self.prompts)]

    def options(self):
        return {"k": self.k, "w": self.w, "temperature": self.temperature, "seed": self.seed}

    def expected(self):
        return expected(dataclasses.replace(self, ends_at=None, fused=True))

    def end_tokens(self):
        return [] if self.ends_at is None else [self.expected()[0].tokens[self.ends_at]]

    def decodes(self, name, length=4):
        """The results of an engine with drafts of a name, of two runs."""
        pair = self.pair
        reward = pair.engine.panel.rewards["reward"]
        for backbone in (pair.engine.lm, getattr(reward, "backbone", pair.engine.lm)):
            backbone.fused = self.fused
        answers = {tuple(t): e.tokens for t, e in zip(self.texts(), self.expected(), strict=True)}
        drafts = make(name, lambda prompt, config: answers[prompt], length)
        engine = scheduler(pair, pages=40, drafts=drafts)
        options = {**self.options(), "eos_token_ids": self.end_tokens(), "max_new_tokens": STEPS}
        for _ in range(2):
            results = run(engine, *(sequence(text, pair, **options) for text in self.texts()))
        assert engine.pool.pages_in_use == 0
        assert all(pool.pages_in_use == 0 for pool in engine.scheduler.pools)
        return results


@functools.lru_cache(maxsize=64)
def expected(case):
    models = case.pair.language_model, case.naive_reward
    return [oracle.decode(*models, t, steps=STEPS, **case.options()) for t in case.texts()]


def assert_equal(one, wanted, eos):
    ends = [i + 1 for i, token in enumerate(wanted.tokens) if token in eos]
    length = ends[0] if ends else STEPS
    assert one.error is None, one.error
    result = one.generation()
    assert result.token_ids == wanted.tokens[:length]
    assert result.finish_reason == ("eos" if ends else "length")
    for field in ("logprobs", "rewards", "scores"):
        got, naive = getattr(result, field), getattr(wanted, field)[:length]
        assert got == pytest.approx(naive, abs=1e-4, rel=1e-4, nan_ok=True), field


def check(case, name, length=4):
    results = case.decodes(name, length)
    for one, wanted in zip(results, case.expected(), strict=True):
        assert_equal(one, wanted, case.end_tokens())
    return results


CASES = st.builds(
    Case,
    lm=st.sampled_from(["llama", "mistral", "gpt2", "opt", "gemma2", "qwen3"]),
    rm=st.sampled_from(["llama", "mistral", "opt", "gpt_oss", *ON_THE_LM]),
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    prompt_seed=st.integers(0, 99),
    k=st.sampled_from([1, 2, 3, 10]),
    w=st.sampled_from([0.0, 0.5, 1.5, -2.0, 30.0, 1e-3]) | st.floats(-10, 10, width=32),
    temperature=st.none() | st.sampled_from([0.3, 0.7, 2.0]),
    seed=st.integers(0, 2**63 - 1),
    ends_at=st.sampled_from([None, 0, 3, STEPS - 1]),
    fused=st.booleans(),
)


@pytest.mark.parametrize("name", NAMES)
def test_drafts_change_no_token(name):
    drawn, discarded, drafted, accepted, rewards = 0, 0, 0, 0, set()

    @settings(max_examples=examples(15))
    @given(CASES, st.sampled_from([1, 2, 5, 8]))
    def check_case(case, length):
        nonlocal drawn, discarded, drafted, accepted
        drawn += 1
        if min(one.margin for one in case.expected()) < MARGIN:
            discarded += 1
            return
        rewards.add(case.rm)
        for one in check(case, name, length):
            drafted += one.drafted
            accepted += one.accepted

    check_case()
    print(f"{drawn} cases, {discarded} discarded, {accepted} of {drafted} drafts accepted")
    assert discarded <= drawn * 0.2
    assert len(rewards.intersection(ON_THE_LM)) >= 2
    assert drafted > (5 if name == "ngram" else 50)  # short texts hardly repeat themselves
    if name == "perfect":
        assert accepted == drafted
    elif name == "adversarial":
        assert 0.2 * drafted < accepted < drafted
    elif name in ("history", "auto"):
        assert accepted > 0.1 * drafted


@pytest.mark.parametrize("rm", REWARD_CONFIGS)
def test_every_architecture_judges_drafts(rm):
    case = Case(lm=rm, rm=rm, prompts=(17, 1))
    assert min(one.margin for one in case.expected()) > MARGIN
    for name in ("perfect", "adversarial"):
        check(case, name)


# ---- any interleaving ----------------------------------------------------------------------------


class DraftedTraffic(Traffic):
    """Guided by a model of its own, by adapters, by a head, by several of these, and by none."""

    figures = FIGURES
    kinds = (*ADAPTED, {"adapter": 0.5, "other": 1.0, "head": 1.0})
    running = None  # the machine at work

    def __init__(self):
        super().__init__()
        DraftedTraffic.running = self

    @classmethod
    def answer(cls, prompt, config):
        """What will be chosen for the request of this configuration."""
        (one,) = (one for one in cls.running.requests if one.config is config)
        return traffic.wanted(one).tokens


@pytest.mark.parametrize("name", NAMES)
def test_any_interleaving_with_drafts(name, monkeypatch):
    made, naive = lora.mixed()
    for reward, of_text in naive.items():
        monkeypatch.setitem(traffic.NAIVE, reward, of_text)

    class Drafted(DraftedTraffic):
        rewards = made
        drafts = make(name, DraftedTraffic.answer, 3)

    before = dict(FIGURES)
    Drafted.TestCase.settings = settings(
        max_examples=examples(4), stateful_step_count=20, phases=[Phase.generate]
    )
    Drafted.TestCase().runTest()
    figures = {key: FIGURES[key] - before[key] for key in FIGURES}
    print(name, figures)
    assert figures["requests"] > 10
    assert figures["preempted"] > 0


# ---- the comparison can fail ---------------------------------------------------------------------


def too_many(tokens, proposal):
    n = tokens.shape[1]
    return (verify_count(tokens, proposal) + 1).clamp(max=n)


def too_few(tokens, proposal):
    """Takes the choice without the drafts before it."""
    return torch.ones_like(verify_count(tokens, proposal))


verify_count = verify.count_tokens


def is_caught(name="adversarial", case=Case()):
    try:
        check(case, name)
    except AssertionError:
        return True
    return False


def test_one_token_too_many_is_caught(monkeypatch):
    assert not is_caught()
    monkeypatch.setattr(verify, "count_tokens", too_many)
    assert is_caught()
    assert is_caught("blind")


def test_too_few_is_slow_and_right(monkeypatch):
    monkeypatch.setattr(verify, "count_tokens", too_few)
    for one in check(Case(), "perfect"):
        assert one.accepted == STEPS - 1  # of each draft the first, as its one token


def test_wrong_rows_are_caught(monkeypatch):
    commit = Branches.commit_rows
    monkeypatch.setattr(
        Branches, "commit_rows", lambda self, rows, counts: commit(self, rows * 0, counts)
    )
    assert is_caught("perfect")


def test_drafts_that_see_their_siblings_are_caught(monkeypatch):
    attend = Branches.answer

    def blurred(self, *args):
        mask = self.mask
        self.mask = torch.ones_like(mask)
        try:
            return attend(self, *args)
        finally:
            self.mask = mask

    monkeypatch.setattr(Branches, "answer", blurred)
    assert is_caught("perfect", Case(fused=False))


# ---- one request ---------------------------------------------------------------------------------


def answer(prompt, config):
    options = config.k, config.w, config.temperature, config.seed, config.max_new_tokens
    return alone(prompt, *options, tuple(REWARD.items())).tokens


def drafted_engine(alter, length, pages=40, **options):
    return scheduler(pages=pages, drafts=Scripted(answer, alter, length), **options)


def test_a_perfect_draft_takes_a_pass_for_all_of_its_tokens():
    engine = drafted_engine(perfect, 3)
    one = sequence(tokens(9), k=4, max_new_tokens=13)
    engine.submit(one)
    steps = 0
    while not one.finished:
        engine.step()
        steps += 1
    assert steps == 4  # 4 + 4 + 4 + 1
    assert (one.drafted, one.accepted) == (9, 9)
    assert_as_alone(one)
    assert engine.stats.drafted_tokens == engine.stats.accepted_tokens == 9


def test_what_is_rejected_is_written_over():
    engine = drafted_engine(adversarial, 4)
    one = sequence(tokens(9), k=4, max_new_tokens=40)
    run(engine, one)
    assert 0 < one.accepted < one.drafted
    assert_as_alone(one)


def test_drafts_never_take_pages_from_others():
    for name in ("perfect", "adversarial"):
        engine = drafted_engine(SCRIPTS[name], 8, pages=5, rows=4)
        longer = [sequence(tokens(14, seed=i), max_new_tokens=40, k=4) for i in range(4)]
        run(engine, *longer)
        assert engine.stats.preemptions > 0
        for one in longer:
            assert_as_alone(one)
        assert engine.pool.pages_in_use == 0


def test_requests_of_different_k_share_a_step():
    engine = drafted_engine(adversarial, 3)
    kinds = ({"k": 9}, {"k": 4, "temperature": 0.7, "seed": 5}, {"k": 2, "w": -2.0}, {"k": 1})
    requests = [sequence(tokens(15 + i), **kind) for i, kind in enumerate(kinds)]
    run(engine, *requests)
    for one in requests:
        assert_as_alone(one)


def test_skipping_requests_are_not_drafted():
    engine = drafted_engine(perfect, 3)
    one = sequence(tokens(9), k=4, every=2)
    run(engine, one)
    assert one.generation().drafted is None


def test_nothing_is_drafted_without_drafts():
    (one,) = run(scheduler(), sequence(tokens(9)))
    result = one.generation()
    assert result.drafted is None
    assert result.accepted is None
