"""The tables that follow the pytest-benchmark suites, from times that are made up."""

from types import SimpleNamespace

import pytest

from args_fast.bench import baselines, slowdown
from args_fast.bench.conftest import steps, throughput


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


def test_throughput_is_together_over_alone():
    rows = throughput(
        [
            result([4.0], throughput=baselines.ARGS, together=False, tokens=512),
            result([1.0], throughput=baselines.ARGS, together=True, tokens=512),
            result([2.0], throughput=baselines.GREEDY, together=True, tokens=512),
        ]
    )
    assert rows[1:] == [
        [baselines.ARGS, "128.0", "512.0", "4.00"],
        [baselines.GREEDY, "", "256.0", ""],
    ]
