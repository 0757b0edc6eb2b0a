"""The suites of pytest-benchmark in miniature."""

import os
import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_suites_run_in_miniature():
    command = [sys.executable, "-m", "pytest", BENCH, "--benchmark-disable", "-n", "0"]
    command += ["-p", "no:cacheprovider", "-k", "not 16 and not 64"]  # clients
    more = {"ARGS_FAST_BENCH_MODEL": "tiny-opt", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_throughput_is_printed():
    more = {"ARGS_FAST_BENCH_MODEL": "tiny-opt", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", BENCH / "test_throughput.py", "--benchmark-only"]
    command += ["-n", "0", "-p", "no:cacheprovider", "-k", "greedy"]
    run = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for way in ("alone", "together"):
        assert re.search(rf"args-fast greedy, {way}: [0-9.]+ tokens/s", run.stdout)
