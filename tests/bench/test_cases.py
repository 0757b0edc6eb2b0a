"""The table of cases: what stands in it can be run."""

import pytest

from args_fast.bench import baselines, cases, models
from args_fast.bench.cases import SETS, Case, chosen, on_device, tiny

EVERY_CASE = [pytest.param(case, id=f"{name}: {case.key}") for name in SETS for case in SETS[name]]


@pytest.mark.parametrize("case", EVERY_CASE)
def test_a_case_fits_its_models(case):
    for name in (case.lm, case.rm):
        longest = models.config(name).max_position_embeddings
        assert case.prompt + case.new_tokens <= longest
    assert models.config(case.rm).vocab_size >= models.config(case.lm).vocab_size
    assert set(case.methods) <= set(baselines.METHODS)
    assert {baselines.ARGS, baselines.GREEDY, baselines.TRANSFORMERS} <= set(case.methods)
    assert case.batch == 1 or baselines.NAIVE not in case.methods


def test_the_headline_is_what_the_paper_and_the_design_name():
    settings = [(case.lm, case.rm, case.prompt) for case in chosen("headline")]
    assert settings[:2] == [("opt-2.7b", "opt-350m", 128), ("opt-2.7b", "opt-350m", 1900)]
    assert ("opt-2.7b", "opt-125m", 128) in settings
    assert ("llama-7b", "llama-7b", 128) in settings
    for case in chosen("headline"):
        assert (case.k, case.batch, case.dtype, case.new_tokens) == (10, 1, "bfloat16", 128)
        assert set(case.methods) == set(baselines.METHODS)


def test_all_begins_with_the_headline_and_holds_each_setting_once():
    everything = chosen("all")
    assert everything[: len(chosen("headline"))] == chosen("headline")
    keys = [case.key for case in everything]
    assert len(keys) == len(set(keys))
    assert {case.batch for case in everything} >= {1, 4, 16, 64}
    assert {case.k for case in everything} >= {2, 5, 10, 20, 40}


def test_a_case_comes_back_from_its_json():
    for case in chosen("all"):
        assert Case.from_json(case.as_json()) == case


def test_slow_baselines_decode_few_tokens():
    case = Case("opt-125m", "opt-125m", new_tokens=64)
    assert case.tokens_of(baselines.ARGS) == 64
    assert case.tokens_of(baselines.K_COPIES) == 32
    assert case.tokens_of(baselines.NAIVE) == 4
    assert Case("opt-125m", "opt-125m", new_tokens=3).tokens_of(baselines.NAIVE) == 3


def test_compiling_on_the_cpu_is_for_those_who_ask():
    case = chosen("headline")[0]
    assert baselines.STATIC not in on_device(case, "cpu", None).methods
    assert baselines.STATIC in on_device(case, "cuda", None).methods
    assert on_device(case, "cpu", (baselines.STATIC,)).methods == (baselines.STATIC,)


def test_a_dry_run_has_the_same_cases_in_miniature():
    for case in chosen("all"):
        small = tiny(case)
        assert small.k == case.k
        assert models.config(small.lm).model_type == models.config(case.lm).model_type
        assert small.prompt + small.new_tokens <= models.config(small.lm).max_position_embeddings


def test_a_set_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        cases.chosen("everything")
