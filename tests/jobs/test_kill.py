"""kill -9 at seeded moments, each time started again: nothing is lost, doubled or torn.

HYPOTHESIS_PROFILE=thorough kills 50 times where the suite kills a few.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from random import Random

import pytest
from fake_decoder import SETTINGS, FakeDecoder, run_job
from typer.testing import CliRunner

from args_fast.cli import app
from args_fast.tiny_pair import HELDOUT

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def size(path):
    return path.stat().st_size if path.exists() else 0


def kill_and_resume(start, output, total, kills, seed, code=0):
    """Start the job again and again; kill it when its output has grown by a random amount, or after
    a random time if it has not come to write by then. In the end it is left alone, and exits with
    ``code``. Returns the kills that met a running job."""
    random = Random(seed)
    met = 0
    for i in range(kills):
        process = start()
        left = total - size(output)
        wanted = size(output) + random.uniform(0, 2 * left / (kills - i + 1))
        patience = time.monotonic() + random.choice([random.uniform(0, 1), 60])
        while process.poll() is None and size(output) < wanted and time.monotonic() < patience:
            time.sleep(0.0002)
        process.kill()
        met += process.wait() == -signal.SIGKILL
    assert start().wait() == code
    return met


class Forked:
    """A child that runs the job with a decoder without models, writing a few bytes at a time."""

    def __init__(self, source, output, settings, seed):
        self.pid = os.fork()
        if self.pid == 0:
            write = os.write
            os.write = lambda file, data: write(file, data[:11])
            code = 1
            try:
                run_job(source, output, settings, FakeDecoder(seed=seed, pause=0.0002))
                code = 0
            finally:
                os._exit(code)
        self.code = None

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        patience = time.monotonic() + 60
        while self.poll() is None:
            if time.monotonic() > patience:
                self.kill()  # a child that hangs is a failure, not a wait without end
            time.sleep(0.0002)
        return self.code


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_a_job_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, ordered):
    source, output, whole = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "whole.jsonl"))
    with open(source, "w") as file:
        for i in range(400):
            file.write("bad\n" if i % 9 == 5 else json.dumps({"prompt": f"p{i}", "seed": i}) + "\n")
    settings = replace(SETTINGS, ordered=ordered)
    run_job(source, whole, settings)
    kills = 50 if THOROUGH else 8
    seeds = iter(range(100))

    def start():
        return Forked(source, output, settings, next(seeds))

    met = kill_and_resume(start, output, size(whole), kills, seed=ordered)
    assert met >= kills / 2
    if ordered:
        assert output.read_bytes() == whole.read_bytes()
    else:
        assert sorted(output.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_the_command_is_killed_with_the_true_pair(tmp_path):
    source, output, whole = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "whole.jsonl"))
    kills = 50 if THOROUGH else 2
    with open(source, "w") as file:
        for i, line in enumerate(HELDOUT.read_text().splitlines()[: 4 * kills + 12]):
            prompt = json.loads(line)["prompt"]
            options = {"max_new_tokens": 4 + i % 9, "temperature": 0.8 if i % 2 else None}
            file.write("bad\n" if i == 7 else json.dumps({"prompt": prompt} | options) + "\n")
    log = open(tmp_path / "log", "wb")  # noqa: SIM115

    options = ("--device", "cpu", "--max-batch-size", "2")

    def start():
        command = (sys.executable, "-m", "args_fast", "batch", source, output, *options)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    assert CliRunner().invoke(app, ["batch", str(source), str(whole), *options]).exit_code == 1
    met = kill_and_resume(start, output, size(whole), kills, seed=3, code=1)
    assert met >= kills / 2
    assert output.read_bytes() == whole.read_bytes()
