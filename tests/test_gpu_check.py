"""The rehearsal of the GPU check on the CPU: all stages but the build, with this installation."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import scripts
from args_fast.bench import ops_cases
from args_fast.ops import backends

SCRIPT = scripts.ROOT / "scripts" / "gpu_check.py"
gpu_check = scripts.load("scripts/gpu_check.py")
TOOLS = ("memcheck", "racecheck")


def test_a_dry_run_is_green_and_leaves_its_results(tmp_path):
    command = [sys.executable, SCRIPT, "C", "--dry-run"]
    command += ["--stage", "sanitize", "--stage", "ops", "--work", tmp_path / "work"]
    command += ["--seconds", "1200"]  # of a machine that is shared
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
        assert names >= set(backends.TABLE["cpu"][case["op"]])
    (archive,) = (tmp_path / "out").iterdir()
    with tarfile.open(archive) as opened:
        names = {Path(name).name for name in opened.getnames()}
    assert {file.name, f"{file.stem}.md", "ops.log"} <= names


def test_a_stage_that_fails_is_red_and_the_next_one_runs(tmp_path):
    command = [sys.executable, SCRIPT, "C", "--dry-run", "--seconds", "1"]
    command += ["--stage", "ops", "--stage", "sanitize", "--work", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "red: ops" in run.stdout
    assert "its time was over" in run.stdout
    assert "skipped  sanitize" in run.stdout


def check(work, *more, **environment):
    command = [sys.executable, SCRIPT, "C", "--dry-run", "--seconds", "1200"]
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
    assert left["golden"] == pytest.approx(165 * share, abs=0.5)  # with what build has left
    assert left["test"] == pytest.approx(305 * share, abs=0.5)
    assert left["trace"] == pytest.approx(34, abs=0.5)
    assert "RED      golden             0.0 s  ValueError: broken" in capsys.readouterr().out


@pytest.mark.parametrize("visit", gpu_check.VISITS)
def test_a_visit_ends_within_eight_minutes_and_stands_alone(visit):
    stages = gpu_check.VISITS[visit]
    assert next(iter(stages)) == "build"
    assert sum(stages.values()) <= 480
    assert set(stages) <= set(gpu_check.STAGES)


@pytest.fixture
def on_cuda(tmp_path):
    """A check of a GPU whose commands are noted and not run."""

    class Noted(gpu_check.Check):
        def run(self, part, command, **variables):
            commands[part] = command
            return gpu_check.Outcome(part, gpu_check.OK, "fine")

    commands = {}
    check = Noted("cuda", False, sys.executable, tmp_path, tmp_path / "results")
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
    runs = {f"{a} {b}" for a in ("compile", *TOOLS) for b in ("ops", "layers")}
    assert set(on_cuda.commands) == runs
    for part, command in on_cuda.commands.items():
        tool, _ = part.split()
        assert ("--tool" in command) == (tool in TOOLS)
        assert tool == "compile" or command[command.index("--tool") + 1] == tool
        assert ("test_layers_on_device.py::test_layers" in " ".join(command)) == ("layers" in part)
        assert (command[-1] == "bfloat16 and (llama or opt-350m)") == ("layers" in part)
        assert ("args_fast.bench.ops_bench" in command) == ("ops" in part)
