"""The pair of the suites; and what their times say is printed: slowdown, throughput."""

from collections import defaultdict
from typing import Any

import pytest
import torch

from args_fast import ArgsDecoder
from args_fast.bench import slowdown
from args_fast.bench.cases import SIZE
from args_fast.bench.models import random_pair
from args_fast.bench.timing import describe, environment, read_bandwidth

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair() -> ArgsDecoder:
    """Two models of the size that is measured."""
    return random_pair(SIZE, SIZE)


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    results = [result for result in session.benchmarks if result.stats.rounds] if session else []
    write = terminalreporter.write_line
    slowdowns = [result.extra_info for result in results if "methods" in result.extra_info]
    requests = [result for result in results if "throughput" in result.extra_info]
    if slowdowns or requests:
        terminalreporter.section("what the times say")
        write(describe(environment(CPU)))
    if slowdowns:
        bandwidth = read_bandwidth(CPU)
        write(f"{slowdown.DEFINITION} That is {bandwidth / 1e9:.1f} GB/s here.")
    for info in slowdowns:
        methods = info["methods"]
        write(f"\n{info['case']}: {slowdown.headline(methods)}")
        write("\n".join(slowdown.shown(methods, bandwidth)))
    if requests:
        write("\nseveral requests")
        write(slowdown.as_markdown(throughput(requests)))


def throughput(results: list[Any]) -> list[list[str]]:
    """Tokens per second of every workload by each way to serve it, the first way of it as 1."""
    speeds: dict[str, dict[str, float]] = defaultdict(dict)
    for result in results:
        info = result.extra_info
        speeds[info["throughput"]][info["way"]] = info["tokens"] / result.stats.median
    ways = list(dict.fromkeys(way for speed in speeds.values() for way in speed))
    rows = [["tokens/s", *ways]]
    for workload, speed in speeds.items():
        base = next(iter(speed.values()))
        cells = [
            f"{speed[way]:.1f} ({speed[way] / base:.2f})" if way in speed else "" for way in ways
        ]
        rows.append([workload, *cells])
    return rows
