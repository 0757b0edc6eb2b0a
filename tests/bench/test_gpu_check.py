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
TOOLS = ("memcheck", "racecheck")


def test_a_dry_run_is_green_and_leaves_its_results(tmp_path):
    command = [sys.executable, ROOT / "bench" / "gpu_check.py", "C", "--dry-run"]
    command += ["--stage", "sanitize", "--stage", "ops", "--work", tmp_path / "work"]
    make = tmp_path / "bin" / "make"  # which must not be there for any stage
    make.parent.mkdir()
    make.write_text(f"#!/bin/sh\ntouch {tmp_path}/made\nexit 1\n")
    make.chmod(0o755)
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{make.parent}:{os.environ['PATH']}"
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "red: none" in run.stdout
    assert not (tmp_path / "made").exists()
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
    share = 34 / sum(gpu_check.VISITS["A"].values())
    monkeypatch.setattr(sys, "argv", arguments)
    left = {}

    def stage(name):
        def run(check):
            left[name] = check.seconds_left
            if name == "golden":
                raise ValueError("broken")
            return [gpu_check.Outcome(name, gpu_check.OK, "")]

        return run

    monkeypatch.setattr(gpu_check, "STAGES", {name: stage(name) for name in gpu_check.STAGES})
    assert gpu_check.main() == 1
    assert left["build"] == pytest.approx(75 * share, abs=0.5)
    assert left["golden"] == pytest.approx(105 * share, abs=0.5)  # with what build has left
    assert left["test"] == pytest.approx(165 * share, abs=0.5)
    assert left["trace"] == pytest.approx(34, abs=0.5)
    assert "RED      golden             0.0 s  ValueError: broken" in capsys.readouterr().out


@pytest.mark.parametrize("visit", gpu_check.VISITS)
def test_a_visit_ends_within_six_minutes_and_stands_alone(visit):
    stages = gpu_check.VISITS[visit]
    assert next(iter(stages)) == "build"
    assert sum(stages.values()) <= 360
    assert set(stages) <= set(gpu_check.STAGES)


@pytest.fixture
def on_cuda(tmp_path):
    """A check of a GPU whose commands are noted and not run."""

    class Noted(gpu_check.Check):
        def run(self, part, command, **variables):
            commands[part] = command
            return gpu_check.Outcome(part, gpu_check.OK, "fine")

    commands = {}
    check = Noted("cuda", False, sys.executable, tmp_path, tmp_path / "results", None)
    check.end, check.commands = time.monotonic() + 60, commands
    return check


def test_ops_that_were_asked_for_and_not_built_are_red(on_cuda):
    (outcome,) = gpu_check.build(on_cuda)
    assert outcome.status == gpu_check.RED
    assert outcome.note.startswith("not built: _cpu.so, _cuda.so")
    for name in ("_cpu.so", "_cuda.so"):
        assert name in outcome.note
        library = on_cuda.library / "args_fast" / name
        library.parent.mkdir(exist_ok=True)
        library.touch()
        outcome, *loaded = gpu_check.build(on_cuda)
        assert bool(loaded) == (name == "_cuda.so")
    assert (outcome.status, outcome.note) == (gpu_check.OK, "_cpu.so _cuda.so")
    here = subprocess.run(on_cuda.commands["CUDA ops"], capture_output=True, text=True)
    assert (here.returncode == 0) == (here.stdout.strip() == "built")


def test_sanitizers_look_at_what_programs_share(on_cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: str(tmp_path))
    assert {o.status for o in gpu_check.sanitize(on_cuda)} == {gpu_check.OK}
    assert set(on_cuda.commands) == {f"{a} {b}" for a in TOOLS for b in ("ops", "layers")}
    for part, command in on_cuda.commands.items():
        assert command[command.index("--tool") + 1] == part.split()[0]
        assert ("test_layers_on_device.py::test_layers" in " ".join(command)) == ("layers" in part)
        assert (command[-1] == "bfloat16 and (llama or opt-350m)") == ("layers" in part)
        if part.endswith("ops"):
            assert command[command.index("--op") + 1] == "all"


def test_toy_sizes_enter_splits_merges_and_tickets():
    """The numbers are those of the kernels, for 108 multiprocessors and 2 bytes an element."""
    from args_fast.kernels.branch_attention import TUNING
    from args_fast.kernels.linear import TUNING as LINEAR
    from args_fast.kernels.linear import divide

    toy = [(case.op, dict(case.sizes)) for case in ops_cases.cases(toy=True, op="all")]
    tile, units = 2048, 1024  # csrc/cuda: logits of a block; 16-byte pieces of a block of commits
    block_n = TUNING[8, 0]["blocks"][2, 16][16][0]
    _, block_k, *_ = LINEAR[8, 0]["few"][2, 16]
    assert any(op == "topk_logprobs" and s["V"] > 2 * tile for op, s in toy)
    assert any(
        op == "select_commit" and 2 * s["L"] * s["Hkv"] * s["D"] * 2 // 16 > 2 * units
        for op, s in toy
    )
    assert any(op == "branch_attention" and s["t"] > 2 * block_n for op, s in toy)
    blocks = [s["K"] // block_k for op, s in toy if op == "linear" and s["M"] > 1]
    assert any(count > 1 and divide(1, count, 2 * 108, 0.25) > 1 for count in blocks)
    assert any(op == "linear" and s["M"] == 1 for op, s in toy)
