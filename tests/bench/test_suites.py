"""The suites of pytest-benchmark in miniature, and their tables from times that are made up."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from args_fast.bench import baselines, slowdown
from args_fast.bench.conftest import steps, throughput

BENCH = Path(__file__).parents[2] / "bench"


def result(data, **info):
    median = sorted(data)[len(data) // 2]
    return SimpleNamespace(stats=SimpleNamespace(data=data, median=median), extra_info=info)


def test_steps_are_told_from_both_parts():
    parts = {"whole": [4.1, 4.3, 4.2], "first": [1.0, 1.2, 1.1]}
    greedy = {"whole": [2.1, 2.3, 2.2], "first": [0.5, 0.7, 0.6]}
    found = steps(
        [
            result(data, method=method, prompt=128, part=part, new_tokens=32)
            for method, times in ((baselines.ARGS, parts), (baselines.TRANSFORMERS, greedy))
            for part, data in times.items()
        ]
        + [result([9.0], method=baselines.NAIVE, prompt=128, part="whole", new_tokens=4)]
    )
    methods = found[128]
    assert set(methods) == {baselines.ARGS, baselines.TRANSFORMERS}  # naive lacks its first token
    assert methods[baselines.ARGS]["step"]["median"] == pytest.approx(3.1 / 31)
    ratio = slowdown.slowdown(methods, baselines.ARGS, baselines.TRANSFORMERS)
    assert ratio == pytest.approx(3.1 / 1.6)


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
