"""``args-fast bench``: whose models it measures, what it says first, and what it refuses."""

import pytest

from args_fast.bench import baselines, slowdown, timing
from args_fast.tiny_pair import LM, RM

SMALL = ["--lm", "tiny-opt", "--rm", "tiny-opt", "--prompt", 9, "--new-tokens", 8, "--rounds", 1]
SPREAD = {"low": 0.1, "high": 0.3, "minimum": 0.1, "repeats": 5}


@pytest.fixture(autouse=True)
def _bandwidth(monkeypatch):
    monkeypatch.setattr(timing, "read_bandwidth", lambda device: 1e10)


@pytest.fixture
def measured(monkeypatch):
    """What would be measured, in place of measuring it: greedy steps of 0.1 s, others of 0.2 s."""
    seen = []

    def measure_case(pair, case, *, rounds, report):
        seen.append((pair, case, rounds))
        return {
            name: {
                "step": SPREAD | {"median": 0.1 if name in baselines.GREEDIES else 0.2},
                "first": SPREAD | {"median": 1.0},
                "tokens_per_second": 5.0,
                "bytes_per_second": 1e9,
            }
            for name in case.methods
        }

    monkeypatch.setattr(slowdown, "measure_case", measure_case)
    return seen


def test_ratio_comes_first(cli, measured):
    shown = cli("bench", *SMALL)
    assert shown.exit_code == 0, shown.stderr
    first = shown.stdout.splitlines()[0]
    assert "2.00 times transformers greedy" in first
    assert "2.00 times args-fast greedy" in first
    assert "x transformers greedy" in shown.stdout
    assert "A slowdown (x) is a step over that of the greedy" in shown.stderr


def test_without_models_a_pair_is_measured_on_which_the_difference_shows(cli, measured):
    assert cli("bench", "--lm", "opt-125m", "--device", "cpu").exit_code == 0
    assert cli("bench", "--device", "cpu").exit_code == 0
    for pair, case, rounds in measured:
        assert (case.lm, case.rm, case.prompt, case.k) == ("opt-125m", "opt-125m", 512, 10)
        assert (case.dtype, rounds) == ("float32", 5)
        assert pair.language_model.config.hidden_size == 768
        assert {*baselines.GREEDIES[:1], baselines.GREEDY, baselines.ARGS} <= set(case.methods)
    assert baselines.K_COPIES in measured[1][1].methods


def test_own_pair_is_loaded(cli, measured):
    shown = cli("bench", "--lm", LM, "--rm", RM, "--prompt", 20, "--k", 5, "--batch", 2)
    assert shown.exit_code == 0, shown.stderr
    ((pair, case, _),) = measured
    assert pair.tokenizer is not None
    assert (case.lm, case.k, case.batch, case.prompt) == (str(LM), 5, 2, 20)
    assert baselines.K_COPIES not in case.methods


def test_further_methods_are_measured_too(cli, measured):
    assert cli("bench", *SMALL, "--also", baselines.NAIVE).exit_code == 0
    assert measured[0][1].methods[-1] == baselines.NAIVE


def test_json_is_one_object(cli_json):
    found = cli_json("bench", *SMALL, "--dtype", "bfloat16")
    assert found["case"]["dtype"] == "bfloat16"
    assert set(found["methods"]) == set(found["case"]["methods"])
    assert found["environment"]["threads"] >= 1
    assert found["read_bytes_per_second"] == 1e10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--also", "magic"], "'magic' is not a method; choose from: transformers greedy"),
        (["--lm", "opt-9b"], "--lm is given without --rm"),
        (["--lm", "opt-125m", "--rm", str(RM)], "a shape and a model; give two models"),
        (["--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(cli, measured, arguments, message):
    shown = cli("bench", *arguments)
    assert shown.exit_code == 2
    assert message in " ".join(shown.stderr.split())
    assert not measured


def test_nothing_that_could_be_measured_is_an_error(cli, monkeypatch):
    failed = {"args-fast ARGS": {"error": "LengthError: 600 tokens"}}
    monkeypatch.setattr(slowdown, "measure_case", lambda *arguments, **options: failed)
    shown = cli("bench", *SMALL)
    assert shown.exit_code == 2
    assert "LengthError: 600 tokens" in shown.stderr


def test_help_has_examples(cli):
    shown = " ".join(cli("bench", "--help").stdout.split())
    assert "args-fast bench --lm org/lm --rm org/rm" in shown
