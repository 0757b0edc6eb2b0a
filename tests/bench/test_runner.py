"""What is measured is kept: figures, failures, and whatever was finished before a crash."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from args_fast.bench import baselines, runner
from args_fast.bench.cases import Case
from args_fast.bench.results import Results, code_fingerprint, open_results, read_all
from args_fast.bench.timing import environment

CPU = torch.device("cpu")
MEASURE_PARTS = runner.parts.measure_parts
CASE = Case(
    "tiny-opt",
    "tiny-opt",
    k=5,
    prompt=9,
    dtype="float32",
    new_tokens=24,
    methods=(baselines.ARGS, baselines.GREEDY, baselines.TRANSFORMERS),
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The machine's own figures and profiles take seconds, and have tests of their own."""
    monkeypatch.setattr(runner, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(runner.roofline, "matmul_peak", lambda device, dtype: 1e10)
    profile = {"parts": {"host, idle": 1.0}, "profile": {"steps": 4, "busy_seconds": 0.0}}
    monkeypatch.setattr(runner.parts, "measure_parts", lambda *arguments: profile)


@pytest.fixture
def instant(monkeypatch):
    """Nothing is timed: the methods that would be, in order. One that is in ``fails`` raises."""

    def measured(pair, case, method, tell):
        if method in instant.fails:
            raise instant.fails[method]
        instant.calls.append(method)
        return {"step_seconds": 1.0 + len(instant.calls)}

    instant = SimpleNamespace(calls=[], fails={})
    monkeypatch.setattr(runner, "_measured", measured)
    return instant


@pytest.fixture
def results(tmp_path):
    return open_results(tmp_path, environment(CPU), dry_run=False, copy_to=None)


def test_a_step_and_the_prompt_are_timed_apart(results):
    assert runner.run([CASE], results, CPU) == []
    record = Results.read(results.path).cases[CASE.key]
    assert record["complete"]
    assert record["attempts"] == 1
    assert list(record["methods"]) == list(CASE.methods)
    for figures in record["methods"].values():
        whole, first = figures["whole"]["median"], figures["first"]["median"]
        assert figures["prefill_seconds"] == first > 0
        assert figures["step_seconds"] == pytest.approx((whole - first) / 23)
        assert figures["tokens_per_second"] == pytest.approx(1 / figures["step_seconds"])
        assert figures["step_seconds_low"] <= figures["step_seconds"]
        assert figures["step_seconds"] <= figures["step_seconds_high"]
        assert figures["whole"]["repeats"] >= 3
    bytes_per_token = 2 * 2 * 64 * 4  # keys and values, layers, hidden, float32
    assert record["cache"]["rm_bytes_per_sequence"] == (9 + 24) * bytes_per_token
    assert record["cache"]["rm_bytes_of_k_copies"] == 5 * (9 + 24) * bytes_per_token
    assert record["cache"]["bytes"] < 20 * (9 + 24) * bytes_per_token


def test_a_steps_time_is_kept_in_parts(results, monkeypatch):
    monkeypatch.setattr(runner.parts, "measure_parts", MEASURE_PARTS)
    runner.run([replace(CASE, methods=(baselines.ARGS,))], results, CPU)
    record = Results.read(results.path).cases[CASE.key]
    step = record["methods"][baselines.ARGS]["step_seconds"]
    assert sum(record["parts"].values()) == pytest.approx(step)
    assert record["profile"]["steps"] > 1


def test_a_profile_that_fails_is_told_and_fails_nothing_else(results, instant, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no profiler\nhere")

    monkeypatch.setattr(runner.parts, "measure_parts", broken)
    runner.run([CASE], results, CPU)
    record = Results.read(results.path).cases[CASE.key]
    assert record["complete"]
    assert record["parts_error"] == "RuntimeError: no profiler"
    assert "parts" not in record
    assert all("step_seconds" in figures for figures in record["methods"].values())


def test_methods_that_a_case_lacks_are_added_with_args_beside_them(results, instant):
    first = replace(CASE, methods=(baselines.ARGS, baselines.GREEDY))
    runner.run([first], results, CPU)
    before = json.loads(json.dumps(results.cases[CASE.key]))
    told = []
    runner.run([CASE], results, CPU, tell=told.append)
    assert f"{CASE.key} + {baselines.TRANSFORMERS}: about" in "\n".join(told)
    record = Results.read(results.path).cases[CASE.key]
    assert record["complete"]
    assert set(record["methods"]) == set(CASE.methods) == set(record["case"]["methods"])
    for method in first.methods:
        assert record["methods"][method] == before["methods"][method]
    assert record["parts"] == before["parts"]
    (added,) = record["added"]
    assert added["methods"] == [baselines.TRANSFORMERS]
    assert added["args"] == {"step_seconds": 4.0}  # the third that was measured
    assert results.missing(CASE) == ()
    runner.run([first, CASE], results, CPU)
    assert Results.read(results.path).cases[CASE.key] == record


def test_what_was_finished_is_lost_to_no_interrupt(results, instant):
    first = replace(CASE, methods=(baselines.ARGS,))
    runner.run([first], results, CPU)
    before = results.cases[CASE.key]["methods"][baselines.ARGS]
    instant.fails[baselines.TRANSFORMERS] = KeyboardInterrupt()
    for attempts in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            runner.run([CASE], results, CPU)
        record = Results.read(results.path).cases[CASE.key]
        assert record["attempts"] == attempts
        assert record["methods"][baselines.ARGS] == before
        assert results.missing(CASE) == (baselines.TRANSFORMERS,)
    told = []
    instant.fails.clear()
    runner.run([CASE, replace(first, k=7)], results, CPU, tell=told.append)
    begun = [line for line in told if line.startswith("[")]
    assert "k=7" in begun[0]  # what died twice waits for the others
    assert results.missing(CASE) == ()
    assert [each["methods"] for each in results.cases[CASE.key]["added"]] == [
        [baselines.GREEDY],
        [],
        [baselines.TRANSFORMERS],
    ]


def test_again_measures_everything_once_again(results, instant):
    first = replace(CASE, methods=(baselines.ARGS,))
    whole = replace(CASE, methods=(baselines.ARGS, baselines.GREEDY))
    for again in (False, True):
        instant.calls.clear()
        runner.run([first, whole], results, CPU, again=again)
        # ARGS a second time beside what is added to it.
        assert instant.calls == [baselines.ARGS, baselines.ARGS, baselines.GREEDY]


def test_estimates_count_what_has_to_be_compiled(results):
    machine = {"bandwidth": 1e10, "peak": {"float32": 1e10}}
    seconds = {
        method: runner.estimate(replace(CASE, methods=(method,)), (method,), CPU, machine)
        for method in (baselines.GREEDY, *baselines.COMPILED, baselines.STATIC)
    }
    layers = {baselines.ARGS_COMPILED: 4, baselines.GREEDY_COMPILED: 2, baselines.STATIC: 2}
    for method, count in layers.items():
        assert seconds[method] > seconds[baselines.GREEDY] / 2 + count * 1.0 - 0.5


def test_every_method_adds_to_the_estimate():
    machine = {"bandwidth": 1e12, "peak": {"bfloat16": 1e14}}
    case = Case("opt-2.7b", "opt-350m")
    whole = runner.estimate(case, case.methods, torch.device("cuda"), machine)
    for method in baselines.METHODS:
        rest = replace(case, methods=tuple(name for name in case.methods if name != method))
        assert runner.estimate(rest, rest.methods, torch.device("cuda"), machine) < whole


def test_what_is_finished_is_not_measured_again_unless_asked(results, instant):
    runner.run([CASE], results, CPU)
    before = json.dumps(results.cases)
    runner.run([CASE], results, CPU)
    assert json.dumps(results.cases) == before
    runner.run([CASE], results, CPU, again=True)
    assert json.dumps(results.cases) != before


def test_a_batch_counts_all_its_tokens(results):
    case = replace(CASE, batch=3, methods=(baselines.ARGS,))
    runner.run([case], results, CPU)
    figures = results.cases[case.key]["methods"][baselines.ARGS]
    assert figures["tokens_per_second"] == pytest.approx(3 / figures["step_seconds"])


def test_a_method_that_fails_is_a_result_and_the_others_go_on(results, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such kernel\nwith details")

    monkeypatch.setitem(baselines.METHODS, baselines.GREEDY, broken)
    runner.run([CASE], results, CPU)
    methods = results.cases[CASE.key]["methods"]
    assert methods[baselines.GREEDY] == {"error": "RuntimeError: no such kernel"}
    assert "step_seconds" in methods[baselines.TRANSFORMERS]
    assert results.cases[CASE.key]["complete"]


def test_a_lost_device_ends_the_case_and_the_next_run_goes_on_behind_it(results, monkeypatch):
    def lost(device, case):
        raise runner.DeviceLostError("the device answers no more")

    monkeypatch.setattr(runner, "_check_device", lost)
    with pytest.raises(runner.DeviceLostError):
        runner.run([CASE, replace(CASE, k=6)], results, CPU)
    written = Results.read(results.path).cases
    assert list(written) == [CASE.key]
    assert written[CASE.key]["complete"]
    assert list(written[CASE.key]["methods"]) == [baselines.ARGS]


def test_an_interrupted_case_is_measured_again(results, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(baselines.METHODS, baselines.GREEDY, interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run([CASE], results, CPU)
    record = Results.read(results.path).cases[CASE.key]
    assert not record["complete"]
    assert "step_seconds" in record["methods"][baselines.ARGS]  # written, though the case is not
    runner.run([CASE], results, CPU)
    assert results.cases[CASE.key]["complete"]
    assert results.cases[CASE.key]["attempts"] == 2


def test_a_method_that_decodes_too_few_tokens_is_not_timed(results, monkeypatch):
    monkeypatch.setitem(baselines.METHODS, baselines.GREEDY, lambda *arguments: [[1, 2]])
    runner.run([CASE], results, CPU)
    assert "24 were asked for" in results.cases[CASE.key]["methods"][baselines.GREEDY]["error"]


def test_no_case_is_begun_that_does_not_fit_the_budget(results):
    (skipped,) = runner.run([CASE], results, CPU, budget=0.0)
    assert skipped.case == CASE
    assert "0 s left" in skipped.why
    assert not Results.read(results.path).cases
    assert runner.run([CASE], results, CPU, budget=1000.0) == []


def test_estimates_follow_what_was_measured(results, instant):
    runner.run([CASE], results, CPU)
    results.cases[CASE.key]["seconds"] = 50 * results.cases[CASE.key]["expected_seconds"]
    (skipped,) = runner.run([replace(CASE, k=6)], results, CPU, budget=60.0)
    assert skipped.case.k == 6


def test_a_case_that_died_twice_waits_for_the_others(results, instant):
    deadly, other = CASE, replace(CASE, k=7)
    results.cases[deadly.key] = {"complete": False, "attempts": 2}
    told = []
    runner.run([deadly, other], results, CPU, tell=told.append)
    begun = [line for line in told if line.startswith("[")]
    assert other.key in begun[0]
    assert deadly.key in begun[1]


def test_the_same_prompts_every_time():
    assert runner.prompts_of(CASE) == runner.prompts_of(CASE)
    assert [len(ids) for ids in runner.prompts_of(replace(CASE, batch=3))] == [9] * 3


# ---- files -------------------------------------------------------------------------------------


def test_a_file_is_named_after_its_device_day_and_code(tmp_path):
    about = environment(CPU) | {"device": "NVIDIA H100 80GB HBM3", "commit": "0123456789"}
    clean = open_results(tmp_path, about, dry_run=False, copy_to=None)
    assert clean.path.parent == tmp_path / "nvidia-h100-80gb-hbm3"
    assert clean.path.stem[10:] == "-0123456789"
    changed = open_results(tmp_path, about | {"commit": "0123456789+"}, dry_run=False, copy_to=None)
    assert changed.path.stem[10:] == f"-0123456789-{code_fingerprint()}"


@pytest.mark.parametrize(
    "other", [{"commit": "fedcba9876"}, {"device": "another"}, {"versions": {"torch": "9.9"}}]
)
def test_only_results_of_the_same_code_device_and_versions_are_added_to(tmp_path, other):
    about = environment(CPU) | {"commit": "0123456789"}
    first = open_results(tmp_path, about, dry_run=False, copy_to=None)
    first.write()
    later = about | {"date": "2030-01-01T00:00:00+00:00"}
    assert open_results(tmp_path, later, dry_run=False, copy_to=None).path == first.path
    assert open_results(tmp_path, about | other, dry_run=False, copy_to=None).path != first.path
    assert open_results(tmp_path, about, dry_run=True, copy_to=None).path != first.path


def test_a_file_of_another_schema_is_refused(tmp_path, results):
    results.write()
    results.path.write_text(results.path.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(ValueError, match="schema 7"):
        list(read_all(tmp_path))


# ---- the whole of it ---------------------------------------------------------------------------


def test_a_killed_dry_run_of_the_gpu_set_goes_on_where_it_stopped(tmp_path):
    """`make gpu-bench` in miniature, ended by SIGKILL in the middle of a case, and run again."""
    kept, copies = tmp_path / "kept", tmp_path / "copies"
    command = [sys.executable, "-m", "args_fast", "bench", "--set", "all", "--dry-run"]
    command += ["--device", "cpu", "--results", str(kept), "--budget", "1000"]
    settings = os.environ | {"OUT": str(copies), "OMP_NUM_THREADS": "1"}

    def records(complete=True):
        (found,) = [*read_all(kept)] or [None]
        if found is None:
            return {}
        return {
            key: record for key, record in found.cases.items() if record["complete"] is complete
        }

    def in_the_middle():
        return any(0 < len(record["methods"]) < 3 for record in records(complete=False).values())

    process = subprocess.Popen(command, env=settings, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while len(records()) < 2 or not in_the_middle():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = records()
    (killed,) = records(complete=False)

    again = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before") == len(before)
    (results,) = read_all(kept)
    after = records()
    assert after[killed]["attempts"] == 2
    assert {key: after[key] for key in before} == before
    assert set(after) == set(results.cases)
    assert len(after) > len(before)
    batches = {record["case"]["batch"] for record in after.values()}
    assert batches == {1, 4}
    for key, record in after.items():
        for method, figures in record["methods"].items():
            assert "step_seconds" in figures or "too noisy" in figures["error"], (key, method)
        assert record.get("parts") or "too noisy" in record["methods"][baselines.ARGS]["error"]
    assert again.stdout.strip() == str(results.path)
    (copy,) = read_all(copies)
    assert copy.cases == results.cases
