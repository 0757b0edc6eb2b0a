"""A sweep loses nothing: not to a budget, a kill, or a device that does not answer any more."""

import json
from dataclasses import replace

import pytest
import torch

from args_fast.bench import baselines, cases, slowdown, sweep
from args_fast.bench.cases import Case

CPU = torch.device("cpu")
CASE = Case("tiny-opt", "tiny-opt", k=5, prompt=9, dtype="float32", new_tokens=12)
OTHERS = [CASE, replace(CASE, k=6), replace(CASE, k=7)]
STEP = {"median": 0.1, "low": 0.1, "high": 0.1}
FIGURES = {"step": STEP, "first": STEP, "tokens_per_second": 10.0, "bytes_per_second": None}


@pytest.fixture
def measured(monkeypatch):
    """Nothing is timed: the cases that would be, in order. One that is in ``fails`` raises."""
    seen, fails = [], {}

    def measure_case(pair, case, *, rounds):
        if case.key in fails:
            raise fails[case.key]
        seen.append(case)
        return dict.fromkeys(case.methods, FIGURES)

    monkeypatch.setattr(sweep, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(sweep, "copy_bandwidth", lambda device: 2e10)
    monkeypatch.setattr(slowdown, "measure_case", measure_case)
    measure_case.seen, measure_case.fails = seen, fails
    return measure_case


@pytest.fixture
def document():
    environment = {"device": "A CPU", "threads": 1, "versions": {}, "cuda": None}
    environment |= {"commit": "c", "date": "2030"}
    return {"environment": environment, "bandwidth": None, "cases": {}}


def test_what_is_finished_is_not_measured_again(tmp_path, measured, document):
    file = tmp_path / "slowdown.json"
    assert sweep.sweep(OTHERS[:2], file, document, CPU) == []
    kept = json.loads(file.read_text())
    assert list(kept["cases"]) == [case.key for case in OTHERS[:2]]
    assert sweep.sweep(OTHERS, file, kept, CPU) == []
    assert measured.seen == OTHERS
    assert (kept["bandwidth"], kept["copy_bandwidth"]) == (1e10, 2e10)
    assert "reaches 10 GB/s here, a copy 20." in file.with_suffix(".md").read_text()


def test_budget_leaves_what_does_not_fit(tmp_path, measured, document):
    file = tmp_path / "slowdown.json"
    assert sweep.sweep(OTHERS, file, document, CPU, budget=-1.0) == OTHERS
    assert sweep.sweep(OTHERS[:1], file, document, CPU, budget=100.0) == []
    document["cases"][CASE.key]["seconds"] = 101.0
    assert sweep.sweep(OTHERS, file, document, CPU, budget=100.0) == OTHERS[1:]


def test_killed_case_is_measured_again(tmp_path, measured, document):
    file = tmp_path / "slowdown.json"
    measured.fails[OTHERS[1].key] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(OTHERS, file, document, CPU)
    measured.fails.clear()
    assert sweep.sweep(OTHERS, file, json.loads(file.read_text()), CPU) == []
    assert measured.seen == OTHERS


def test_lost_device_ends_the_run_and_the_next_one_continues(
    tmp_path, measured, document, monkeypatch
):
    def lost(device):
        raise RuntimeError("an illegal memory access was encountered")

    file = tmp_path / "slowdown.json"
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "synchronise", lost)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            sweep.sweep(OTHERS, file, document, CPU)
    assert sweep.sweep(OTHERS, file, json.loads(file.read_text()), CPU) == []
    assert measured.seen == OTHERS


def test_models_that_do_not_fit_are_a_result(tmp_path, measured, document, monkeypatch):
    def full(case, device):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr(sweep, "build", full)
    assert sweep.sweep([CASE], tmp_path / "slowdown.json", document, CPU) == []
    assert "80 GiB" in document["cases"][CASE.key]["methods"][baselines.ARGS]["error"]


@pytest.mark.parametrize(
    ("error", "red"),
    [
        ("RuntimeError: a step was not captured as a graph: not permitted", True),
        ("OutOfMemoryError: tried to allocate 80 GiB", False),
    ],
)
def test_a_method_that_fails_is_red_unless_memory_is_short(
    error, red, tmp_path, measured, monkeypatch, capsys
):
    failed = dict.fromkeys(CASE.methods, FIGURES) | {baselines.ARGS: {"error": error}}
    monkeypatch.setattr(slowdown, "measure_case", lambda *_, **__: failed)
    monkeypatch.setitem(cases.SETS, "headline", [CASE])
    arguments = ["--set", "headline", "--device", "cpu", "--results", str(tmp_path)]
    assert sweep.main(arguments) == red
    assert (error in capsys.readouterr().out) == red
    (file,) = tmp_path.glob("*/slowdown-*.json")
    assert json.loads(file.read_text())["cases"][CASE.key]["methods"] == failed


@pytest.mark.parametrize("lm", ["tiny-opt", "tiny-llama"])
def test_cache_has_room_for_the_case_and_not_for_more(lm):
    case = replace(CASE, lm=lm, rm=lm, batch=3)
    pair = sweep.build(case, CPU)
    assert pair.cache.sequences(9 + 12) >= 3
    assert pair.cache.tokens <= 3 * (32 + 2 * 16) + 16


def test_rehearsal_measures_every_kind_of_case(tmp_path, capsys, monkeypatch):
    for name in ("read_bandwidth", "copy_bandwidth"):
        monkeypatch.setattr(sweep, name, lambda device: 1e10)
    monkeypatch.setitem(cases.SETS, "all", [replace(cases.PAIR, methods=cases.USUAL)])
    arguments = ["--set", "all", "--rehearse", "--rounds", "2", "--device", "cpu"]
    assert sweep.main([*arguments, "--results", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*/slowdown-rehearsed-*.json")
    (record,) = json.loads(file.read_text())["cases"].values()
    assert set(record["methods"]) == {*cases.USUAL}
    assert capsys.readouterr().out.strip() == str(file.with_suffix(".md"))
    assert "x transformers greedy" in file.with_suffix(".md").read_text()
