"""The suites of pytest-benchmark in miniature, and their tables from times that are made up."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from args_fast.bench import baselines
from args_fast.bench.conftest import throughput

BENCH = Path(__file__).parents[2] / "bench"


def result(data, **info):
    median = sorted(data)[len(data) // 2]
    return SimpleNamespace(stats=SimpleNamespace(data=data, median=median), extra_info=info)


def test_throughput_is_of_every_way_over_the_first():
    rows = throughput(
        [
            result([4.0], throughput=baselines.ARGS, way="alone", tokens=512),
            result([1.0], throughput=baselines.ARGS, way="together", tokens=512),
            result([2.0], throughput="4 clients", way="engine", tokens=96),
        ]
    )
    assert rows == [
        ["tokens/s", "alone", "together", "engine"],
        [baselines.ARGS, "128.0 (1.00)", "512.0 (4.00)", ""],
        ["4 clients", "", "", "48.0 (1.00)"],
    ]


def test_suites_run_in_miniature():
    command = [sys.executable, "-m", "pytest", BENCH, "--benchmark-disable", "-n", "0"]
    command += ["-p", "no:cacheprovider", "-k", "not 16 and not 64"]  # clients
    more = {"ARGS_FAST_BENCH_MODEL": "tiny-opt", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
