"""The suites of pytest-benchmark in miniature."""

import os
import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def run(*arguments):
    """The words of pytest over bench/, with tiny models and not as a worker of xdist."""
    command = [sys.executable, "-m", "pytest", BENCH, "-n", "0", "-p", "no:cacheprovider"]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    variables |= {"ARGS_FAST_BENCH_MODEL": "tiny-opt", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_suites_run_in_miniature():
    run("--benchmark-disable", "-k", "not 16 and not 64")  # clients


def test_throughput_is_printed():
    words = run("--benchmark-only", "-k", "requests and greedy")
    for way in ("alone", "together"):
        assert re.search(rf"args-fast greedy, {way}: [0-9.]+ tokens/s", words)
