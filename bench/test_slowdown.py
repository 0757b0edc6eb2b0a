"""The slowdown of ARGS against greedy decoding, in one process, on this machine.

`make bench`, or `pytest bench/test_slowdown.py --benchmark-only`. Nothing is asserted about time.
The methods take turns (bench/slowdown.py), as in `args-fast bench`; here with both published ways
among them, k copies of the cache and none, and after two lengths of prompt.
"""

import pytest

from args_fast.bench import baselines, slowdown
from args_fast.bench.cases import SIZE, USUAL, Case
from args_fast.bench.timing import read_bandwidth

METHODS = (*USUAL, baselines.K_COPIES, baselines.NAIVE)


@pytest.mark.parametrize("prompt", [128, 512])
def test_slowdown(benchmark, capsys, pair, prompt):
    case = Case(SIZE, SIZE, prompt=prompt, dtype="float32", new_tokens=32, methods=METHODS)
    methods = benchmark.pedantic(slowdown.measure_case, args=(pair, case), rounds=1)
    benchmark.extra_info.update(case=case.name, methods=methods)
    bandwidth = read_bandwidth(pair.device)
    lines = slowdown.shown(methods, bandwidth)
    with capsys.disabled():
        print(f"\n{case.name}: {slowdown.headline(methods)}", *lines, sep="\n")
    assert set(methods) == set(METHODS)
