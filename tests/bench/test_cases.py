"""The settings of a sweep: what they name can be run."""

import pytest

from args_fast.bench import baselines, models
from args_fast.bench.cases import MODULES, SETS, USUAL, Case, tiny

EVERY_CASE = [
    pytest.param(case, id=case.key)
    for case in dict.fromkeys(case for cases in SETS.values() for case in cases)
]


@pytest.mark.parametrize("case", EVERY_CASE)
def test_case_fits_its_models(case):
    for name in (case.lm, case.rm):
        longest = models.config(name).max_position_embeddings
        assert case.prompt + case.new_tokens <= longest
    assert models.config(case.rm).vocab_size >= models.config(case.lm).vocab_size
    assert set(case.methods) <= set(baselines.METHODS)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_case_has_ARGS_and_a_greedy_of_the_same_run(case):
    assert any(name not in baselines.GREEDIES for name in case.methods)
    assert any(name in baselines.GREEDIES for name in case.methods)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_tiny_is_the_same_case_in_miniature(case):
    small = tiny(case)
    assert small.k == case.k
    assert models.config(small.lm).model_type == models.config(case.lm).model_type
    assert small.prompt + small.new_tokens <= models.config(small.lm).max_position_embeddings
    assert not set(small.methods) & set(baselines.COMPILING)


def test_the_papers_pair_comes_first():
    settings = [(case.lm, case.rm, case.prompt, case.k) for case in SETS["all"]]
    assert settings[:2] == [
        ("opt-2.7b", "opt-350m", 128, 10),
        ("opt-2.7b", "opt-350m", 1900, 10),
    ]
    assert ("llama-7b", "llama-7b", 128, 10) in settings
    assert {case.k for case in SETS["all"]} == {2, 5, 10, 20, 40}
    assert {case.batch for case in SETS["all"]} == {1, 4, 16, 64}


def test_the_visits_to_a_gpu_measure_the_papers_pairs_and_then_the_others():
    pairs = {("opt-2.7b", rm, t) for rm in ("opt-350m", "opt-125m") for t in (128, 1900)}
    for visit, methods in (
        ("A", {*USUAL, baselines.LOOKAHEAD, baselines.NO_LOOKAHEAD}),
        ("B", {*USUAL, *MODULES, baselines.GREEDY_FUSED, baselines.ARGS_FUSED}),
    ):
        assert {(case.lm, case.rm, case.prompt) for case in SETS[visit]} == pairs
        for case in SETS[visit]:
            assert (case.dtype, case.batch, case.k) == ("bfloat16", 1, 10)
            assert set(case.methods) - {baselines.K_COPIES} == methods
    assert SETS["C"][0].lm == SETS["C"][0].rm == "llama-7b"
    copied = {case.prompt for case in SETS["B"] if baselines.K_COPIES in case.methods}
    assert copied == {1900}
    assert {4, 16} <= {case.batch for case in SETS["C"]}
    measured = {name for case in SETS["C"] for name in case.methods}
    assert {*baselines.COMPILING, *baselines.ADAPTERS} <= measured


def test_keys_tell_all_cases_apart():
    for settings in SETS.values():
        assert len({case.key for case in settings}) == len(settings)


def test_slow_methods_decode_few_tokens():
    case = Case("opt-125m", "opt-125m", new_tokens=64)
    assert [case.tokens_of(name) for name in USUAL] == [64, 64, 64]
    assert case.tokens_of(baselines.K_COPIES) == 32
    assert case.tokens_of(baselines.NAIVE) == 4
    assert Case("opt-125m", "opt-125m", new_tokens=3).tokens_of(baselines.NAIVE) == 3


def test_prompts_are_the_same_every_time():
    case = Case("tiny-opt", "tiny-opt", prompt=9, batch=3)
    assert case.prompts(500) == case.prompts(500)
    assert [len(ids) for ids in case.prompts(500)] == [9, 9, 9]
    assert max(max(ids) for ids in case.prompts(20)) < 20
