"""The rehearsal of the GPU check on the CPU: all stages but the build, with this installation."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from args_fast.bench import gpu_check, ops_bench, ops_cases
from args_fast.ops import backends, plain
from args_fast.ops.schemas import SCHEMAS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_a_dry_run_is_green_and_leaves_its_results(tmp_path):
    command = [sys.executable, ROOT / "bench" / "gpu_check.py", "C", "--dry-run"]
    command += ["--stage", "sanitize", "--stage", "ops", "--work", tmp_path / "work"]
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "red: none" in run.stdout
    (file,) = (tmp_path / "work" / "results").glob("*/ops-toy-*.json")
    document = json.loads(file.read_text())
    assert document["not_reached"] == []
    assert {case["op"] for case in document["cases"]} == set(ops_cases.TOY_AXES)
    for case in document["cases"]:
        names = {row["name"] for row in case["rows"] if row["status"] == "timed"}
        assert names > set(backends.TABLE["cpu"][case["op"]])
    (archive,) = (tmp_path / "out").iterdir()
    with tarfile.open(archive) as opened:
        names = {Path(name).name for name in opened.getnames()}
    assert {file.name, f"{file.stem}.md", "ops.log"} <= names


def test_a_stage_that_fails_is_red_and_the_next_one_runs(tmp_path):
    command = [sys.executable, ROOT / "bench" / "gpu_check.py", "C", "--dry-run", "--seconds", "1"]
    command += ["--stage", "ops", "--stage", "sanitize", "--work", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "red: ops" in run.stdout
    assert "its time was over" in run.stdout
    assert "skipped  sanitize" in run.stdout


@pytest.fixture
def offered():
    """Lets a test offer a backend, and takes it back."""
    before = {op: dict(found) for op, found in backends.TABLE["cpu"].items()}
    yield backends.TABLE["cpu"]
    backends.TABLE["cpu"].update(before)


def run(folder, **more):
    options = {"seconds": 60, "toy": True, "op": "select"}
    return ops_bench.run(CPU, folder, **{**options, **more})


def test_an_implementation_that_is_wrong_is_not_timed(tmp_path, offered):
    def wrong(*arguments):
        branch, reward, score = plain.select(*arguments)
        return branch, reward + 0.5, score

    def broken(*arguments):
        raise RuntimeError("no")

    offered["select"] |= {"wrong": wrong, "broken": broken}
    file, document = run(tmp_path)
    rows = {row["name"]: row for row in document["cases"][0]["rows"]}
    assert (rows["wrong"]["status"], rows["broken"]["status"]) == ("wrong", "failed")
    assert rows["wrong"]["eager"] is None
    assert rows["torch"]["eager"]["median"] > 0
    assert len(ops_bench.failures(document)) == 2
    assert "differs from plain by up to 0.5" in file.with_suffix(".md").read_text()


def test_wrong_writes_are_seen(tmp_path, offered):
    def lazy(tail_k, tail_v, branch, k_pages, v_pages, table, lengths):
        lengths += 1  # and no row is written

    offered["commit"] |= {"lazy": lazy}
    _, document = run(tmp_path, op="commit")
    assert [line.split(": ")[1] for line in ops_bench.failures(document)] == ["lazy"]


def test_a_run_continues_where_the_last_one_of_the_same_sources_stopped(tmp_path, monkeypatch):
    _, stopped = run(tmp_path, seconds=-1, op=None)
    assert stopped["cases"] == []
    assert len(stopped["not_reached"]) == len(ops_cases.cases(toy=True))
    _, first = run(tmp_path)
    _, again = run(tmp_path)
    assert again["cases"] == first["cases"]
    monkeypatch.setattr(ops_bench.results, "sources", lambda: "others")
    assert run(tmp_path)[1]["cases"] != first["cases"]


def test_every_op_has_cases():
    assert set(ops_cases.AXES) == set(ops_cases.TOY_AXES)
    assert set(SCHEMAS) - {"linear"} <= set(ops_cases.AXES)


def test_the_typical_case_of_every_op_comes_first():
    cases = ops_cases.cases()
    first = {case.op: dict(case.sizes) for case in reversed(cases)}
    typical = {"t": 1024, "N": 10, "Hq": 32, "Hkv": 32, "D": 128, "B": 1}
    assert first["branch_attention"] == typical
    assert [case.op for case in cases[: len(first)]] == list(dict.fromkeys(c.op for c in cases))
    assert len({case.name for case in cases}) == len(cases)
    assert sum(case.op == "branch_attention" for case in cases) == 4 * 3 * 5 * 3


@pytest.mark.parametrize("difference", [0.1, float("nan")])
def test_outputs_that_differ_do_not_agree(difference):
    wanted = (torch.zeros(3), torch.arange(3))
    assert ops_cases.difference(wanted, wanted) is None
    assert ops_cases.difference((wanted[0] + difference, wanted[1]), wanted) > 0
    assert ops_cases.difference((wanted[0], wanted[1] + 1), wanted) > 0


def check(work, *more, **environment):
    command = [sys.executable, ROOT / "bench" / "gpu_check.py", "C", "--dry-run"]
    command += ["--work", work, *more]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)


def packed(folder):
    """The names of the files in the archive, if there is one."""
    file = folder / "gpu-C.tar.gz"
    if not file.exists():
        return set()
    with tarfile.open(file) as archive:
        return {Path(name).name for name in archive.getnames()}


def test_a_check_that_is_killed_leaves_nothing_running_and_is_gone_on_with(tmp_path):
    killed = check(tmp_path, "--stage", "ops")
    document = None
    while document is None and killed.poll() is None:
        time.sleep(0.01)
        document = next((tmp_path / "results").rglob("ops-toy-*.json"), None)
    while document.name not in packed(tmp_path) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    time.sleep(0.2)
    before = json.loads(document.read_text())
    assert document.name in packed(tmp_path)  # whole, whenever it was written
    time.sleep(0.5)
    assert json.loads(document.read_text()) == before  # no process writes any more
    assert 0 < len(before["cases"]) < len(ops_cases.cases(toy=True))
    again = check(tmp_path, "--stage", "ops")
    assert again.wait() == 0
    after = json.loads(document.read_text())
    assert after["cases"][: len(before["cases"])] == before["cases"]
    assert after["not_reached"] == []


def test_a_stage_gets_the_time_that_earlier_ones_leave(tmp_path, monkeypatch, capsys):
    arguments = ["gpu_check", "A", "--dry-run", "--work", str(tmp_path), "--seconds", "34"]
    monkeypatch.setattr(sys, "argv", arguments)
    left = {}

    def stage(name):
        def run(check):
            left[name] = check.seconds_left
            if name == "test":
                raise ValueError("broken")
            return [gpu_check.Outcome(name, gpu_check.OK, "")]

        return run

    monkeypatch.setattr(gpu_check, "STAGES", {name: stage(name) for name in gpu_check.STAGES})
    assert gpu_check.main() == 1
    assert left["build"] == pytest.approx(7.5, abs=1)
    assert left["test"] == pytest.approx(16.5, abs=1)  # its own and what build has left
    assert left["trace"] == pytest.approx(34, abs=1)
    assert "RED      test               0.0 s  ValueError: broken" in capsys.readouterr().out
