"""The table of cases: what stands in it can be run."""

import pytest
import torch

from args_fast.bench import baselines, cases, models
from args_fast.bench.cases import SETS, Case, chosen, on_device, tiny
from args_fast.bench.runner import estimate

CPU = torch.device("cpu")

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
    settings = [(case.lm, case.rm, case.prompt) for case in SETS["headline"]]
    assert settings[:2] == [("opt-2.7b", "opt-350m", 128), ("opt-2.7b", "opt-350m", 1900)]
    assert ("opt-2.7b", "opt-125m", 128) in settings
    assert ("llama-7b", "llama-7b", 128) in settings
    for case in SETS["headline"]:
        assert (case.k, case.batch, case.dtype, case.new_tokens) == (10, 1, "bfloat16", 128)
        assert set(case.methods) == set(baselines.METHODS)


@pytest.mark.parametrize("name", ["headline", "all"])
def test_the_headline_comes_first_and_what_compiles_long_behind_all_of_it(name):
    first, second = chosen(name)[:4], chosen(name)[4:8]
    assert [case.key for case in first] == [case.key for case in SETS["headline"]]
    for case in first:
        assert set(baselines.METHODS) - set(case.methods) == set(baselines.COMPILED)
    assert second == SETS["headline"]


def test_all_the_sets_hold_each_method_of_a_setting_once():
    seen = {}
    for case in chosen("all"):
        assert set(case.methods) - seen.setdefault(case.key, set())
        seen[case.key] |= set(case.methods)
    assert {case.batch for case in chosen("all")} >= {1, 4, 16, 64}
    assert {case.k for case in chosen("all")} >= {2, 5, 10, 20, 40}


def test_the_set_for_a_cpu_has_the_curves_and_ours_compiled():
    cases = chosen("cpu")
    small = [case for case in cases if case.lm == "opt-125m"]
    curve = [case for case in small if (case.prompt, case.batch) == (128, 1)]
    assert {case.k for case in curve} == {2, 5, 10, 20, 40}
    at_ten = [case for case in small if case.k == 10]
    assert {case.prompt for case in at_ten if case.batch == 1} == {128, 512, 1024}
    assert {case.batch for case in at_ten if case.prompt == 128} == {1, 4, 16}
    assert ("opt-350m", "opt-125m") in {(case.lm, case.rm) for case in cases}
    assert sum(baselines.LOOKAHEAD in case.methods for case in cases) == 1
    compiled = [case for case in cases if set(baselines.COMPILED) <= set(case.methods)]
    assert {(case.lm, case.batch) for case in compiled} == {
        ("opt-125m", 1),
        ("opt-125m", 4),
        ("opt-350m", 1),
    }


def test_the_set_for_a_cpu_takes_25_minutes_on_two_cores():
    machine = {"bandwidth": 20e9, "peak": {"float32": 1.2e11}}  # two cores of an EPYC, about
    seconds = [estimate(case, case.methods, CPU, machine) for case in chosen("cpu")]
    assert sum(seconds) < 25 * 60


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
