"""The claim of the project: the engine's tokens are the naive decoder's, whatever is asked."""

import math

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import CONFIGS, REWARD_CONFIGS, VOCABULARY, decoder, tokens

from args_fast import DecodingConfig, ops, reference
from args_fast.engine.tail import Tail
from args_fast.ops import backends, plain

MARGIN = 1e-5  # closer alternatives than this may go either way in float32
STEPS = 8


@st.composite
def cases(draw):
    case = {
        "lm": draw(st.sampled_from(sorted(CONFIGS))),
        "rm": draw(st.sampled_from(REWARD_CONFIGS)),
        "layers": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "hidden": (draw(st.sampled_from([32, 48])), draw(st.sampled_from([32, 48]))),
        "prompts": draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)),
        "prompt_seed": draw(st.integers(0, 99)),
        "k": draw(st.sampled_from([1, 2, 3, 10, 40, VOCABULARY])),
        "w": draw(st.sampled_from([0.0, 0.5, 1.5, -2.0, 30.0, 1e-3])),
        "temperature": draw(st.sampled_from([None, None, 0.3, 0.7, 2.0])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "ends_at": draw(st.sampled_from([None, 0, 3, STEPS - 1])),
    }
    return case


def prompts_of(case):
    return [tokens(n, seed=case["prompt_seed"] + i) for i, n in enumerate(case["prompts"])]


def run(case):
    """The engine's and the oracle's generations, and the smallest margin of any choice."""
    pair = decoder(case["lm"], case["rm"], case["layers"], case["hidden"])
    prompts = prompts_of(case)
    options = {"k": case["k"], "w": case["w"], "temperature": case["temperature"]}
    options["seed"] = case["seed"]
    models = pair.language_model, pair.reward_model

    def naive(eos):
        return [oracle.decode(*models, x, steps=STEPS, eos=eos, **options) for x in prompts]

    expected, eos = naive(()), ()
    margin = min(one.margin for one in expected)
    if case["ends_at"] is not None:  # a token that really comes up, in the first sequence at least
        eos = (expected[0].tokens[case["ends_at"]],)
        expected = naive(eos)
    config = DecodingConfig(max_new_tokens=STEPS, eos_token_ids=eos, **options)
    return pair, prompts, config, expected, margin


def assert_equal(result, expected, eos):
    assert result.token_ids == expected.tokens
    assert result.finish_reason == ("eos" if expected.tokens[-1] in eos else "length")
    for field in ("logprobs", "rewards", "scores"):
        got, wanted = getattr(result, field), getattr(expected, field)
        assert got == pytest.approx(wanted, abs=1e-4, rel=1e-4, nan_ok=True), field


def test_engine_equals_both_oracles():
    drawn, discarded = 0, 0

    @given(cases())
    def check(case):
        nonlocal drawn, discarded
        drawn += 1
        pair, prompts, config, expected, margin = run(case)
        if margin < MARGIN:
            discarded += 1
            return
        results = pair.generate(prompts, config)
        for prompt, result, wanted in zip(prompts, results, expected, strict=True):
            assert_equal(result, wanted, config.eos_token_ids)
            printed = reference.decode(pair.language_model, pair.reward_model, prompt, config)
            assert_equal(printed, wanted, config.eos_token_ids)
        assert pair._lm.cache.pages_in_use == pair._rm.cache.pages_in_use == 0

    check()
    print(f"{drawn} cases, {discarded} discarded")
    assert drawn >= 50
    assert discarded <= drawn * 0.1


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_architecture_proposes_as_the_oracle_does(name):
    check_pair(name, "llama")


@pytest.mark.parametrize("name", REWARD_CONFIGS)
def test_every_architecture_judges_as_the_oracle_does(name):
    check_pair("llama", name)


PLAIN_CASE = {
    "layers": (2, 2),
    "hidden": (32, 32),
    "prompts": [17, 1, 30],
    "prompt_seed": 5,
    "k": 7,
    "w": 1.5,
    "temperature": None,
    "seed": 0,
    "ends_at": None,
}


def check_pair(lm, rm):
    pair, prompts, config, expected, margin = run(PLAIN_CASE | {"lm": lm, "rm": rm})
    assert margin > MARGIN
    for result, wanted in zip(pair.generate(prompts, config), expected, strict=True):
        assert_equal(result, wanted, ())


# ---- the comparison can fail: each way of breaking the engine is caught --------------------------


def ignores_the_prefix(q, tail_k, tail_v, k_pages, v_pages, table, lengths, *rest):
    return plain.branch_attention(
        q, tail_k, tail_v, k_pages, v_pages, table, torch.zeros_like(lengths), *rest
    )


def sees_its_siblings(q, tail_k, tail_v, k_pages, v_pages, table, lengths, mask, *rest):
    everything = torch.ones_like(mask)
    return plain.branch_attention(
        q, tail_k, tail_v, k_pages, v_pages, table, lengths, everything, *rest
    )


def forgets_the_last_row(q, tail_k, tail_v, k_pages, v_pages, table, lengths, *rest):
    shorter = (lengths - 1).clamp(min=0)
    return plain.branch_attention(q, tail_k, tail_v, k_pages, v_pages, table, shorter, *rest)


def forgets_the_window(q, *args):
    *rest, _window, softcap, sinks = args
    return plain.branch_attention(q, *rest, 0, softcap, sinks)


def forgets_the_softcap(q, *args):
    *rest, _softcap, sinks = args
    return plain.branch_attention(q, *rest, 0.0, sinks)


def forgets_the_sinks(q, *args):
    *rest, _sinks = args
    return plain.branch_attention(q, *rest, None)


def commits_the_first_branch(tail_k, tail_v, branch, *rest):
    return plain.commit(tail_k, tail_v, torch.zeros_like(branch), *rest)


def flattens_the_batch(hidden, head, bias, logprobs, w, temperature, noise):
    branch, reward, score = plain.select(hidden, head, bias, logprobs, w, temperature, noise)
    best = score.argmax()
    return branch[best].expand_as(branch).contiguous(), reward, score


def takes_the_lowest(hidden, head, bias, logprobs, w, temperature, noise):
    return plain.select(hidden, head, bias, logprobs, -w, temperature, noise)


MUTANTS = [
    ("branch_attention", ignores_the_prefix, "llama"),
    ("branch_attention", sees_its_siblings, "llama"),
    ("branch_attention", forgets_the_last_row, "llama"),
    ("branch_attention", forgets_the_window, "mistral"),
    ("branch_attention", forgets_the_softcap, "gemma2"),
    ("branch_attention", forgets_the_sinks, "gpt_oss"),
    ("commit", commits_the_first_branch, "llama"),
    ("select", flattens_the_batch, "llama"),
    ("select", takes_the_lowest, "llama"),
]


@pytest.mark.parametrize(("op", "mutant", "name"), MUTANTS, ids=lambda m: getattr(m, "__name__", m))
def test_a_broken_engine_is_caught(monkeypatch, op, mutant, name):
    pair, prompts, config, expected, _ = run(PLAIN_CASE | {"lm": name, "rm": name})
    monkeypatch.setitem(backends.TABLE["cpu"][op], "torch", mutant)
    with ops.use_backend("torch"):
        results = pair.generate(prompts, config)
    wrong = [r.token_ids != e.tokens for r, e in zip(results, expected, strict=True)]
    values = [
        not math.isclose(a, b, abs_tol=1e-4)
        for r, e in zip(results, expected, strict=True)
        for a, b in zip(r.rewards, e.rewards, strict=False)
    ]
    assert any(wrong) or any(values)


def test_a_shifted_position_is_caught(monkeypatch):
    pair, prompts, config, expected, _ = run(PLAIN_CASE | {"lm": "llama", "rm": "llama"})
    positions = Tail.positions
    monkeypatch.setattr(Tail, "positions", lambda tail: positions(tail) + 1)
    results = pair.generate(prompts, config)
    rewards = [(r.rewards[0], e.rewards[0]) for r, e in zip(results, expected, strict=True)]
    assert any(abs(a - b) > 1e-4 for a, b in rewards)
